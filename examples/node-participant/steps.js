/**
 * How a run goes on: forward step by step, and back in reverse. Each call of a step is one transaction, with what it
 * writes, what it launches, and how far its run has come. Here is the rule: the next step waits for all children.
 */

import { failure, failureOf, launchedFrom } from './failure.js';
import { isJson, newId } from './wire.js';

const isOpen = ({ state }) => ['waiting', 'started', 'rolling_back'].includes(state);
const isStuck = ({ state }) => ['rollback_failed', 'unknown'].includes(state);
const isPast = (time) => Boolean(time) && Date.parse(time) <= Date.now();

export class Steps {
  constructor(runs, peers, sagas) {
    this.runs = runs;
    this.peers = peers;
    this.sagas = sagas;
  }

  /** Go one step further with a run that has something to do; return whether there was one. */
  async advance() {
    const run = this.runs.due(this.sagas.keys());
    if (!run) return false;
    const { steps } = this.sagas.get(run.saga);
    const children = this.runs.childrenOf(run);
    run.due = 0;
    if (run.state === 'running') await this.#forward(run, steps, children);
    else if (run.state === 'rolling_back') await this.#backward(run, steps, children);
    else if (run.state === 'rollback_failed') this.#healed(run, children);
    this.runs.save(run);
    return true;
  }

  async #forward(run, steps, children) {
    if (children.some(isOpen)) return;
    const source = this.runs.source(run);
    const failed = children.filter(({ state }) => state !== 'committed');
    const { deadline, source: of } = run.envelope.deadlines?.happyPath ?? {};
    if (failed.length) {
      const message = `Child failure occurred while suspended in step [${steps[run.position - 1].step.name}]`;
      this.runs.rollBack(run, failure('ChildRolledBack', message, source, failed.map(reasonOf)));
    } else if (isPast(deadline)) {
      const text = `Missed happy path deadline of ${of} at ${deadline}`;
      const missed = failure('MissedHappyPathDeadline', text, source);
      this.runs.rollBack(run, failure('GaveUp', null, source, [missed]));
    } else if (run.position === steps.length) {
      this.#end(run, 'committed', { result: run.result });
    } else {
      await this.#call(run, steps[run.position].step, children);
    }
  }

  async #call(run, step, children) {
    const launch = (topic, payload, options) => this.#launch(run, topic, payload, options);
    const results = children.map(({ result }) => result);
    try {
      const result = await this.runs.home.attempt(() => step({ ...this.#scope(run), launch, results }));
      Object.assign(run, { position: run.position + 1, result: result ?? run.result, due: 1 });
    } catch (error) {
      this.runs.rollBack(run, failureOf(error, this.runs.source(run)));
    }
  }

  /** Undo the last step that is not undone: first what its children did, then what it did itself. */
  async #backward(run, steps, children) {
    if (run.position === 0) return this.#end(run, 'rolled_back', { failure: run.failure });
    const left = children.filter(({ state }) => !['rolled_back', 'cancelled'].includes(state));
    if (!left.every(isStuck)) return left.forEach((child) => this.runs.order(run, child));
    const { step, undo } = steps[run.position - 1];
    run.obstacle = this.#obstacle(run, step, left);
    try {
      if (!run.obstacle) {
        await this.runs.home.attempt(() => undo?.({ ...this.#scope(run), failure: run.failure }));
        return Object.assign(run, { position: run.position - 1, due: 1 });
      }
    } catch (error) {
      run.obstacle = failureOf(error, this.runs.source(run));
    }
    return this.#end(run, 'rollback_failed', { failure: run.failure, obstacle: run.obstacle });
  }

  /** Return why a step cannot be undone, if that is known before it is tried. */
  #obstacle(run, step, stuck) {
    const source = this.runs.source(run);
    if (stuck.length) {
      const message = `Child rollback failure occurred while suspended in step [${step.name}]`;
      const causes = stuck.map((child) => child.obstacle ?? reasonOf(child));
      return failure('ChildRollbackFailed', message, source, causes);
    }
    if (!isPast(run.rollback_by)) return undefined;
    const missed = failure('MissedRollbackDeadline', `Missed rollback deadline at ${run.rollback_by}`, source);
    return failure('GaveUp', null, source, [missed, run.failure]);
  }

  /** Go on with a rollback that children were in the way of, once none of them is. */
  #healed(run, children) {
    if (run.obstacle.type === 'ChildRollbackFailed' && !children.some(isStuck)) this.runs.heal(run);
  }

  #end(run, state, what) {
    run.state = state;
    this.runs.tell(run, state, what);
  }

  /** Launch a message behind the step that does so; the next one waits for all who listen to it, in all homes. */
  #launch(run, topic, payload, { key, headers } = {}) {
    const id = newId();
    const { home, service } = this.runs;
    const others = this.peers.listeners(topic);
    const here = [...this.sagas.values()].filter((saga) => saga.on === topic);
    const ours = here.map((saga) => ({ service, saga: saga.name, replyTo: home.control }));
    for (const listener of [...others, ...ours]) this.runs.expect(run, id, listener);
    const { lineage, deadlines } = run.envelope;
    const told = {
      'scoop-lineage': [...lineage, run.id].join(','),
      'scoop-expects': JSON.stringify(others.map(({ service: of, saga }) => [of, saga])),
      'scoop-reply-to': home.control,
      'scoop-context': JSON.stringify(run.context),
      'scoop-launched-at': JSON.stringify(launchedFrom()),
      ...(deadlines && { 'scoop-deadlines': JSON.stringify(deadlines) }),
    };
    home.send({ id, topic, key, headers: { ...headers, ...told }, body: Buffer.from(JSON.stringify(payload)) });
    return id;
  }

  /** Return what every step and every `undo` gets. */
  #scope(run) {
    const { id, topic, key, headers, contentType } = run.envelope;
    const body = Buffer.from(run.body);
    const payload = isJson(contentType) ? JSON.parse(body) : body;
    return { db: this.runs.home.db, context: run.context, message: { id, topic, key, headers, contentType, payload } };
  }
}

/** Return why a child did not commit. */
function reasonOf({ service, saga, state, failure: why }) {
  return why ?? failure('GaveUp', `the saga ${saga} was ${state}`, `${saga}[${service}]`);
}
