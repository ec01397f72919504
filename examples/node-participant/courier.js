/** A courier: sagas as they are written with this participant. Everything else in this folder is about how they run. */

import { Participant } from './participant.js';

class NoSuchPlace extends Error {}
class AlreadyGone extends Error {}

/** Take a place in the van. If no van goes there, whoever waits hears of it, with this line of this file. */
function reserve({ db, message }) {
  const { to } = message.payload;
  if (to === 'Atlantis') throw new NoSuchPlace(`no van goes to ${to}`);
  db.prepare('insert into parcel (id, address, state) values (?, ?, ?)').run(message.id, to, 'reserved');
}

/** Called when something fails later, here or in a service that waits for us: as if nothing had been booked. */
function release({ db, message }) {
  const { state } = db.prepare('select state from parcel where id = ?').get(message.id);
  if (state === 'on its way') throw new AlreadyGone(`the parcel to ${message.payload.to} is on its way`);
  db.prepare("update parcel set state = 'released' where id = ?").run(message.id);
}

/** Have an invoice written by another service, whatever that is written in. The next step starts when it is. */
function bill({ message, launch }) {
  const { to, price } = message.payload;
  if (price) launch('invoices.write', { parcel: message.id, to, price });
}

/** The last step's value is the result of the saga, and `results` are those of what the step before has launched. */
function label({ db, message, results }) {
  db.prepare("update parcel set state = 'booked' where id = ?").run(message.id);
  return { tracking: `CZ-${message.id.slice(-6)}`, invoice: results[0] ?? null };
}

/** Return the courier; `file` is its database. */
export function makeCourier({ name = 'courier', file, prefix }) {
  const courier = new Participant({ name, service: 'courier', file, prefix });
  courier.home.db.exec(
    'create table if not exists parcel (id text primary key, address text not null, state text not null)',
  );
  courier.saga('book', {
    on: 'parcels.book',
    steps: [{ step: reserve, undo: release }, { step: bill }, { step: label }],
  });
  return courier;
}
