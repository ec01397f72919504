/** The golden cases of the protocol: what comes in, and what a participant says to it. See docs/protocol/fixtures. */

import assert from 'node:assert/strict';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { makeCourier } from '../courier.js';
import { runId } from '../wire.js';

const { PROTOCOL_FIXTURES, RECORD_FIXTURES } = process.env;
const FOLDER = PROTOCOL_FIXTURES
  ? pathToFileURL(`${PROTOCOL_FIXTURES}/`)
  : new URL('../../../docs/protocol/fixtures/', import.meta.url);

console.error = () => {};

for (const file of readdirSync(FOLDER).filter((name) => name.endsWith('.json'))) {
  const fixture = JSON.parse(readFileSync(new URL(file, FOLDER), 'utf8'));
  test(fixture.about, async () => {
    const said = await play(fixture);
    if (RECORD_FIXTURES) writeFileSync(new URL(file, FOLDER), `${JSON.stringify({ ...fixture, ...said }, null, 2)}\n`);
    else assert.deepEqual(said, { exchange: fixture.exchange, deadLetters: fixture.deadLetters });
  });
}

/** Let a participant have what comes in, and return the whole exchange with what it has said. */
async function play({ home, exchange }) {
  const courier = makeCourier({ name: home.name, file: ':memory:' });
  courier.home.change('update home set id = ?', home.id);
  courier.home.id = home.id;
  const names = new Map(); // of what the participant has chosen itself
  const said = [];
  const transport = {
    lost: Promise.resolve(), // it is never waited for
    publish: async (message) => said.push({ out: outgoing(message, home.id, names) }),
    otherNames: () => [],
  };
  for (const step of exchange) {
    if (step.out) continue;
    said.push(step);
    if (step.in) await courier.receive([incoming(step.in, names)]);
    else await courier.home.transaction(() => courier.peers.announce(home.subscriptions));
    while (courier.home.one('select 1 from run where due = 1') || courier.home.one('select 1 from outbox')) {
      await courier.work(transport);
    }
  }
  return { exchange: said, deadLetters: courier.home.all('select topic from dead_letter').map(({ topic }) => topic) };
}

/** Return a message as a transport hands it over, with what the participant has chosen. */
function incoming(message, names) {
  const text = JSON.stringify(message).replace(/\$[\w.]+/g, (name) => names.get(name));
  const { topic, key, headers, body } = JSON.parse(text);
  const { 'content-type': contentType, ...others } = headers;
  const bytes = Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  return { topic, key, published: topic, headers: others, contentType, body: bytes, place: [text] };
}

/** Return a message that was published, with placeholders for what the participant is free to choose. */
function outgoing({ topic, key, headers, body }, home, names) {
  const all = { ...headers, 'scoop-topic': topic };
  if (topic === 'invoices.write') {
    names.set('$invoice', headers['scoop-id']);
    names.set('$invoice.run', runId(headers['scoop-id'], 'billing', 'invoice'));
    all['scoop-launched-at'] = '<place>';
  } else {
    all['scoop-id'] = '<id>';
  }
  const text = JSON.stringify({ topic, key, headers: all, body: JSON.parse(body) }, function (name, value) {
    if (!String(this.source).includes(home)) return value; // what others have recorded is passed on as it is
    if (name === 'stackTrace' && value.length) return '<places>';
    return name === 'source' ? '<source>' : value;
  });
  return JSON.parse([...names].reduce((result, [name, value]) => result.replaceAll(value, name), text));
}
