/** The courier of the example on a broker that tests share: its topics and groups get a prefix of the test's own. */

import { makeCourier } from './courier.js';

const { BROKER, HOME_FILE, HOME_NAME, TOPIC_PREFIX } = process.env;
const { connect } = await import(BROKER.startsWith('kafka:') ? './kafka.js' : './rabbitmq.js');

const there = (topic) => TOPIC_PREFIX + topic;
const here = (topic) => topic.slice(TOPIC_PREFIX.length);

async function connectOwn(groups, receive) {
  const own = Object.fromEntries(Object.entries(groups).map(([group, topics]) => [there(group), topics.map(there)]));
  const mine = (batch) => receive(batch.map((message) => ({ ...message, topic: here(message.topic) })));
  const transport = await connect(BROKER, own, mine);
  return { ...transport, publish: (message) => transport.publish({ ...message, topic: there(message.topic) }) };
}

const courier = makeCourier({ name: HOME_NAME, file: HOME_FILE });
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => courier.stop());
await courier.run(connectOwn);
