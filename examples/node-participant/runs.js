/**
 * What runs there are, here and below them in other homes, and what homes tell each other of them.
 *
 * A report has a generation, which grows with each report of a run. News that is not newer than what is known changes
 * nothing, and neither does an order that has been followed: messages may come twice, late and in any order.
 */

import { failure } from './failure.js';
import { runId } from './wire.js';

const ORDERS = ['roll_back', 'cancel', 'where', 'release'];
const ENDED = ['committed', 'rolled_back', 'rollback_failed'];
const AS_JSON = ['envelope', 'context', 'told', 'result', 'failure', 'obstacle'];
const PLAIN = ['state', 'position', 'due', 'generation', 'rollback_by'];
const CHANGING = [...PLAIN, 'told', 'context', 'result', 'failure', 'obstacle'];
const SAVE = `update run set ${CHANGING.map((name) => `${name} = ?`).join(', ')} where id = ?`;

const stored = (value) => (value === undefined ? null : JSON.stringify(value));

/** Return a row with what is stored as JSON. */
function loaded(row) {
  if (!row) return undefined;
  const asJson = AS_JSON.filter((name) => name in row);
  return { ...row, ...Object.fromEntries(asJson.map((name) => [name, JSON.parse(row[name]) ?? undefined])) };
}

/** Return how a child is named in an order. */
const named = ({ message, run, service, saga, generation }) => ({ message, run, service, saga, generation });

export class Runs {
  constructor(home, service) {
    this.home = home;
    this.service = service;
  }

  /** Start a run: once, however often its message comes, and not at all if it was cancelled before. */
  begin(saga, { body, context, home, replyTo, expects, ...envelope }) {
    const id = runId(envelope.id, this.service, saga);
    const before = this.load(id);
    if (before && before.state !== 'unknown') return;
    const ours = home === this.home.id && this.home.one('select 1 from child where run = ?', id);
    const expected = expects.some(([service, name]) => service === this.service && name === saga);
    this.home.change(
      `insert or replace into run (id, message, saga, state, generation, reply_to, envelope, body, context)
       values (?, ?, ?, 'running', ?, ?, ?, ?, ?)`,
      id, envelope.id, saga, before?.generation ?? 0, ours ? this.home.control : (expected && replyTo) || null,
      stored(envelope), body, stored(context),
    );
    const run = this.load(id);
    this.tell(run, 'started');
    this.save(Object.assign(run, { due: 1 }));
  }

  /** Take in news of children. */
  hear(replyTo, { children }) {
    for (const { run, generation, state, result, failure: why, obstacle } of children) {
      const isNew = this.home.change(
        `update child set state = ?, generation = ?, reply_to = ?, result = ?, failure = ?, obstacle = ?
         where run = ? and generation < ?`,
        state, generation, replyTo, stored(result), stored(why), stored(obstacle), run, generation,
      );
      if (isNew) this.home.change('update run set due = 1 where id = (select parent from child where run = ?)', run);
    }
  }

  /** Follow the orders of a parent. */
  follow(replyTo, { order, children, reason, context, rollbackBy }) {
    if (!ORDERS.includes(order)) throw new Error(`an unknown order: ${order}`);
    for (const child of children) {
      const known = this.load(child.run);
      if (!known && order === 'release') continue;
      const run = known ?? this.#remember(child, replyTo);
      // A home that was restored from a backup has forgotten what it said: what it says next has to be newer than that.
      const forgot = child.generation > run.generation;
      if (forgot) run.generation = child.generation;

      if (run.state === 'unknown') {
        this.#answer(run, order);
      } else if (order === 'roll_back' && run.state === 'committed') {
        Object.assign(run, { context: { ...run.context, ...context }, rollback_by: rollbackBy ?? null });
        this.rollBack(run, reason);
      } else if (['roll_back', 'cancel'].includes(order) && run.state === 'running') {
        this.rollBack(run, failure('GaveUp', null, this.source(run), [reason]));
      } else if (order === 'release' && ENDED.includes(run.state)) {
        this.#release(run);
      } else if (forgot) {
        this.tell(run, run.told.state, run.told);
      } else if (order === 'where') {
        this.#say(run.reply_to, run.message, 'news', { children: [run.told] });
      }
      this.save(run);
    }
  }

  /** Nothing above will ever ask for this run again, and so nothing will for those below it. */
  #release(run) {
    this.home.change('update run set reply_to = null where id = ?', run.id);
    for (const child of this.home.all('select * from child where parent = ?', run.id)) {
      this.#say(child.reply_to, run.id, 'orders', { order: 'release', children: [named(child)] });
    }
  }

  /** Answer an order about a run of which nothing is known here; who is cancelled will not start. */
  #answer(run, order) {
    const why = failure('UnknownRun', 'this home knows nothing of such a run', this.source(run));
    if (order === 'cancel') this.tell(Object.assign(run, { state: 'cancelled' }), 'cancelled');
    else this.tell(run, 'unknown', { failure: why });
  }

  /** Keep the generation of an answer: if the message comes after all, what becomes of it is newer. */
  #remember({ run, message, saga, generation }, replyTo) {
    const insert = "insert into run (id, message, saga, state, generation, reply_to) values (?, ?, ?, 'unknown', ?, ?)";
    this.home.change(insert, run, message, saga, generation, replyTo);
    return this.load(run);
  }

  /** Report what has become of a run to whoever waits for it, in the transaction in which it has. */
  tell(run, state, { result, failure: why, obstacle } = {}) {
    console.error(`${run.saga} ${run.id}: ${state}`);
    const { message, saga, generation } = Object.assign(run, { generation: run.generation + 1 });
    run.told = { message, run: run.id, service: this.service, saga, generation, state, result, failure: why, obstacle };
    if (run.reply_to) this.#say(run.reply_to, message, 'news', { children: [run.told] });
  }

  /** Give a child the order that it needs for its parent to go back, unless it has it. */
  order(run, child) {
    const order = { waiting: 'cancel', started: 'cancel', committed: 'roll_back' }[child.state];
    if (!order || order === child.ordered) return;
    this.home.change('update child set ordered = ? where run = ?', order, child.run);
    const children = [named(child)];
    const reason = order === 'cancel' ? run.failure : failure('ParentSaidSo', null, this.source(run), [run.failure]);
    const { context, rollback_by: rollbackBy } = run;
    const members = { order, children, reason, context, rollbackBy: rollbackBy ?? undefined };
    this.#say(child.reply_to, run.id, 'orders', members);
  }

  /** Answer which runs above a child have not ended; if none here, the home of who is above them knows. */
  answer({ question, child, answerTo }) {
    const { parent } = this.home.one('select parent from child where run = ?', child.run) ?? {};
    const run = parent && this.load(parent);
    const goesOn = run && !ENDED.includes(run.state);
    if (run?.reply_to && !goesOn) {
      const { id, message, saga, generation } = run;
      const above = { message, run: id, service: this.service, saga, generation };
      this.#say(run.reply_to, this.home.id, 'question', { question, child: above, answerTo });
    } else {
      const active = goesOn ? [{ run: run.id, service: this.service, saga: run.saga, state: run.state }] : [];
      this.home.say(answerTo, this.home.id, 'answer', { question, active });
    }
  }

  /** Say something to a home: at once if it is this one. */
  #say(replyTo, key, kind, members) {
    if (replyTo !== this.home.control) this.home.say(replyTo, key, kind, members);
    else if (kind === 'news') this.hear(replyTo, members);
    else if (kind === 'question') this.answer(members);
    else this.follow(replyTo, members);
  }

  /** Go back from here on. */
  rollBack(run, why) {
    const { launchedAt } = run.envelope;
    const withPlace = launchedAt ? { ...why, launchedAt } : why;
    Object.assign(run, { state: 'rolling_back', failure: withPlace, obstacle: undefined, due: 1 });
  }

  /** Go on with a rollback that has failed. */
  heal(run) {
    this.rollBack(Object.assign(run, { rollback_by: null }), run.failure);
    this.tell(run, 'rolling_back');
  }

  retry(id) {
    const run = this.load(id);
    if (run?.state !== 'rollback_failed') throw new Error(`there is no run ${id} whose rollback has failed`);
    this.heal(run);
    this.save(run);
  }

  /** Return the first run of these sagas that has something to do, as far as is known. */
  due(sagas) {
    const among = JSON.stringify([...sagas]);
    return loaded(
      this.home.one(
        'select * from run where due = 1 and saga in (select value from json_each(?)) order by rowid limit 1', among,
      ),
    );
  }

  /** Return what the last step that is not undone has launched. */
  childrenOf(run) {
    return this.home.all('select * from child where parent = ? and position = ?', run.id, run.position).map(loaded);
  }

  /** Expect a saga to handle a message that the next step launches. */
  expect(run, message, { service, saga, replyTo }) {
    this.home.change(
      'insert into child (run, message, service, saga, reply_to, parent, position) values (?, ?, ?, ?, ?, ?, ?)',
      runId(message, service, saga), message, service, saga, replyTo, run.id, run.position + 1,
    );
  }

  source(run) {
    return `${run.saga}[${this.home.id}]`;
  }

  load(id) {
    return loaded(this.home.one('select * from run where id = ?', id));
  }

  save(run) {
    const values = CHANGING.map((name) => (PLAIN.includes(name) ? run[name] : stored(run[name])));
    this.home.change(SAVE, ...values, run.id);
  }
}
