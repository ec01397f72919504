/** A home: a SQLite database with all that a participant remembers, and what it is still to publish. */

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';

import Database from 'libsql'; // better-sqlite3 has the same interface

import { JSON_TYPE, VERSION, newId } from './wire.js';

const SCHEMA = readFileSync(new URL('schema.sql', import.meta.url), 'utf8');
const BATCH = 100;

export class Home {
  #last = Promise.resolve();

  constructor(file, name, prefix = 'scoop.') {
    this.db = new Database(file);
    for (const setting of ['journal_mode = wal', 'synchronous = full', 'busy_timeout = 5000']) this.db.pragma(setting);
    this.db.exec(SCHEMA);
    this.change('insert into home (id, name) select ?, ? where not exists (select 1 from home)', randomUUID(), name);
    const found = this.one('select id, name from home');
    if (found.name !== name) throw new Error(`${file} is the home ${found.name}, not ${name}`);
    this.id = found.id;
    this.name = name;
    this.everyone = `${prefix}homes`; // the topic of what is said to all homes
    this.control = `${prefix}control.${name}`; // and of what is said to this one
  }

  one(sql, ...values) {
    return this.db.prepare(sql).get(...values);
  }

  all(sql, ...values) {
    return this.db.prepare(sql).all(...values);
  }

  change(sql, ...values) {
    return this.db.prepare(sql).run(...values).changes;
  }

  /** Do some work in one transaction. Transactions come one after the other, for they share a connection. */
  transaction(work) {
    const turn = this.#last.then(() => this.#between('begin immediate', work, 'commit', 'rollback'));
    this.#last = turn.catch(() => {});
    return turn;
  }

  /** Do some work within the transaction; if it fails, nothing is left of it. */
  attempt(work) {
    return this.#between('savepoint attempt', work, 'release attempt', 'rollback to attempt; release attempt');
  }

  async #between(begin, work, keep, forget) {
    this.db.exec(begin);
    try {
      const result = await work();
      this.db.exec(keep);
      return result;
    } catch (error) {
      this.db.exec(forget);
      throw error;
    }
  }

  /** Write a message into the outbox. */
  send({ id = newId(), topic, key = null, headers = {}, body, contentType = JSON_TYPE }) {
    const all = JSON.stringify({ ...headers, 'content-type': contentType, 'scoop-id': id, 'scoop-home': this.id });
    this.change('insert into outbox (topic, key, headers, body) values (?, ?, ?, ?)', topic, key, all, body);
  }

  /** Write into the outbox what is said to another home, or to all. */
  say(topic, key, kind, members) {
    const from = { id: this.id, name: this.name, replyTo: this.control };
    this.send({ topic, key, body: Buffer.from(JSON.stringify({ version: VERSION, kind, from, ...members })) });
  }

  /** Keep what could not be taken in, for people to look at. */
  bury({ topic, headers, body }, reason) {
    const insert = 'insert into dead_letter (topic, headers, body, reason) values (?, ?, ?, ?)';
    this.change(insert, topic, JSON.stringify(headers), body, reason);
  }

  /** Publish what is in the outbox, each message at least once; return whether anything was published. */
  async publish(transport) {
    const batch = this.all('select * from outbox order by tries, number limit ?', BATCH);
    if (!batch.length) return false;
    const sent = await Promise.allSettled(
      batch.map(({ topic, key, headers, body }) =>
        transport.publish({ topic, key, headers: JSON.parse(headers), body: Buffer.from(body) }),
      ),
    );
    await this.transaction(() => batch.forEach(({ number, topic }, place) => this.#settle(number, topic, sent[place])));
    return sent.some(({ status }) => status === 'fulfilled');
  }

  #settle(number, topic, { status, reason }) {
    if (status === 'fulfilled') return this.change('delete from outbox where number = ?', number);
    console.error(`not published on ${topic}, trying again: ${reason.message}`);
    return this.change('update outbox set tries = tries + 1 where number = ?', number); // behind the others
  }
}
