/**
 * A participant in structured cooperation: its sagas are waited for, fail, are undone and are cancelled, as those of
 * scoop_outbox are. This file takes in what comes; runs.js knows what runs there are, and steps.js how they go on.
 */

import { Home } from './home.js';
import { Peers } from './peers.js';
import { Runs } from './runs.js';
import { Steps } from './steps.js';
import { VERSION, readMessage } from './wire.js';

const PATIENCE = 1000; // milliseconds until the next look, or the next attempt to connect
const MOST = 100; // steps until what they have launched is published

export class Participant {
  #sagas = new Map();
  #stopped = false;
  #wake = () => {};

  /**
   * @param name of the home: one that no other has.
   * @param service whose sagas these are, and what its consumer group, or its queue, is called.
   * @param file the SQLite database, also for the tables of the service.
   * @param prefix what the topics begin with on which homes speak.
   */
  constructor({ name, service = name, file, prefix }) {
    this.home = new Home(file, name, prefix);
    this.service = service;
    this.peers = new Peers(this.home);
    this.runs = new Runs(this.home, service);
    this.steps = new Steps(this.runs, this.peers, this.#sagas);
  }

  /** Declare a saga for the messages of a topic: `steps` are `{ step, undo }`, functions that are handed a scope. */
  saga(name, { on, steps }) {
    this.#sagas.set(name, { name, on, steps });
  }

  /** Be at work until `stop` is called; `connect` opens the transport, anew whenever the connection was lost. */
  async run(connect) {
    while (!this.#stopped) {
      let transport;
      try {
        transport = await connect(this.#groups(), (batch) => this.receive(batch));
        await this.home.transaction(() => this.peers.announce(this.#subscriptions(transport)));
        console.error(`at work: the home ${this.home.name}`);
        while (!this.#stopped) await this.work(transport);
      } catch (error) {
        console.error(`connecting anew: ${error.message}`);
        await new Promise((resume) => setTimeout(resume, PATIENCE));
      } finally {
        await transport?.close().catch(() => {});
      }
    }
  }

  stop() {
    this.#stopped = true;
    this.#wake();
  }

  /** Try once more to undo what could not be undone: for people, when they have removed what was in the way. */
  async retry(run) {
    await this.home.transaction(() => this.runs.retry(run));
    this.#wake();
  }

  /** Go on with all that can go on, and publish what comes of it; without anything to do, wait until there may be. */
  async work(transport) {
    const woken = new Promise((resume) => (this.#wake = resume));
    let steps = 0;
    while (steps < MOST && !this.#stopped && (await this.home.transaction(() => this.steps.advance()))) steps += 1;
    const published = await this.home.publish(transport);
    if (steps || published) return;
    const timer = setTimeout(this.#wake, PATIENCE);
    await Promise.race([woken, transport.lost]).finally(() => clearTimeout(timer));
  }

  /** Take messages in. Once this returns they are stored, so that the broker may forget them. */
  async receive(batch) {
    await this.home.transaction(async () => {
      for (const message of batch) {
        await this.home.attempt(() => this.#takeIn(message)).catch((error) => this.home.bury(message, error.message));
      }
    });
    this.#wake();
  }

  #takeIn(received) {
    const { control, everyone } = this.home;
    if ([control, everyone].includes(received.topic)) return this.#obey(JSON.parse(received.body));
    const message = readMessage(received);
    const sagas = [...this.#sagas.values()].filter((saga) => saga.on === message.topic);
    if (!sagas.length) throw new Error(`no saga is subscribed to ${message.topic}`);
    return sagas.forEach((saga) => this.runs.begin(saga.name, message));
  }

  /** Do what a control message says. */
  #obey({ version, kind, from, ...said }) {
    if (version !== VERSION) throw new Error(`a control message of version ${version}: this is ${VERSION}`);
    if (from.id === this.home.id) return undefined;
    switch (kind) {
      case 'subscriptions':
        return this.peers.subscriptions(from, said);
      case 'confirmed':
        return this.peers.confirmed(from, said);
      case 'news':
        return this.runs.hear(from.replyTo, said);
      case 'orders':
        return this.runs.follow(from.replyTo, said);
      case 'question':
        return this.runs.answer(said);
      default:
        throw new Error(`a control message of an unknown kind: ${kind}`);
    }
  }

  #groups() {
    const { control, everyone } = this.home;
    const topics = [...this.#sagas.values()].map((saga) => saga.on);
    return { [this.service]: [...new Set(topics)], [control]: [control, everyone] };
  }

  #subscriptions(transport) {
    return [...this.#sagas.values()].map(({ name, on }) => {
      return { topic: on, pattern: null, names: transport.otherNames(on), service: this.service, saga: name };
    });
  }
}
