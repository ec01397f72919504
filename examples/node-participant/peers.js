/** Other homes: what their sagas listen on, and what they know of ours. */

const listensOn = (topic) => (one) =>
  one.topic === topic || one.names?.includes(topic) || (one.pattern && new RegExp(one.pattern).test(topic));

export class Peers {
  #home;

  constructor(home) {
    this.#home = home;
  }

  /** Tell all homes what the sagas of this one listen on. */
  announce(subscriptions) {
    const list = JSON.stringify(subscriptions);
    const update = 'update home set revision = revision + 1, subscriptions = ? where subscriptions <> ?';
    this.#home.change(update, list, list);
    this.#introduce(this.#home.everyone);
  }

  /** Take in what a home announces, and see to it that it knows us, too. */
  subscriptions(from, { revision, subscriptions, known }) {
    if (!Number.isInteger(revision) || !Array.isArray(subscriptions)) throw new Error('malformed subscriptions');
    this.#home.change(
      `insert into peer (id, reply_to, revision, subscriptions) values (?, ?, ?, ?)
       on conflict (id) do update
       set reply_to = excluded.reply_to, revision = excluded.revision, subscriptions = excluded.subscriptions
       where excluded.revision > peer.revision`,
      from.id, from.replyTo, revision, JSON.stringify(subscriptions),
    );
    const peer = this.#home.one('select revision from peer where id = ?', from.id);
    this.#home.say(from.replyTo, this.#home.id, 'confirmed', { revision: peer.revision });
    const ours = this.#home.one('select revision from home').revision;
    if ((known?.[this.#home.id] ?? 0) < ours) this.#introduce(from.replyTo);
  }

  /** A home has taken our list in: for our sagas it waits from now on. */
  confirmed(from, { revision }) {
    console.error(`the home ${from.name} knows what we listen on (revision ${revision})`);
  }

  /** Return the sagas of other homes that listen on a topic, and where their homes are reached. */
  listeners(topic) {
    return this.#home.all('select reply_to, subscriptions from peer').flatMap((peer) =>
      JSON.parse(peer.subscriptions)
        .filter(listensOn(topic))
        .map(({ service, saga }) => ({ service, saga, replyTo: peer.reply_to })),
    );
  }

  #introduce(topic) {
    const { revision, subscriptions } = this.#home.one('select revision, subscriptions from home');
    const peers = this.#home.all('select id, revision from peer');
    this.#home.say(topic, this.#home.id, 'subscriptions', {
      revision,
      subscriptions: JSON.parse(subscriptions),
      known: Object.fromEntries(peers.map((peer) => [peer.id, peer.revision])),
    });
  }
}
