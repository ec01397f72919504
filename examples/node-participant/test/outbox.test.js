/** The outbox: what the broker does not take is tried again, and keeps nothing else from being published. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Home } from '../home.js';

console.error = () => {};

test('what cannot be published is kept, behind what can', async () => {
  const home = new Home(':memory:', 'test');
  for (let number = 0; number < 250; number += 1) home.send({ topic: 'missing', body: Buffer.from('{}') });
  home.send({ topic: 'there', body: Buffer.from('{}') });
  const published = [];
  const publish = async ({ topic }) => {
    if (topic === 'missing') throw new Error('no such topic');
    published.push(topic);
  };
  for (let number = 0; number < 3; number += 1) await home.publish({ publish });
  assert.deepEqual(published, ['there']);
  assert.equal(home.one('select count(*) as count from outbox').count, 250);
});

test('nothing is left of a transaction that fails, and the next one is not held up', async () => {
  const home = new Home(':memory:', 'test');
  const failed = home.transaction(async () => {
    home.send({ topic: 'there', body: Buffer.from('{}') });
    throw new Error('no');
  });
  const next = home.transaction(() => home.one('select count(*) as count from outbox').count);
  await assert.rejects(failed, /no/);
  assert.equal(await next, 0);
});
