/** Kafka: a topic is a topic, and a group is a consumer group. */

import kafkajs from 'kafkajs';
import lz4 from 'lz4js';

const { CompressionCodecs, CompressionTypes, Kafka, Partitioners, logLevel } = kafkajs;

// scoop_outbox publishes with lz4 unless it is told otherwise, and kafkajs does not know it by itself.
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async ({ buffer }) => Buffer.from(lz4.compress(buffer)),
  decompress: async (buffer) => Buffer.from(lz4.decompress(buffer)),
});

/** Return a header's value as text; of several of one name the last one counts. */
const text = (value) => String((Array.isArray(value) ? value.at(-1) : value) ?? '');

const PRODUCER = { createPartitioner: Partitioners.DefaultPartitioner, allowAutoTopicCreation: false };
const CONSUMER = { sessionTimeout: 10_000, heartbeatInterval: 1000, maxWaitTimeInMs: 100 };

/**
 * Connect; what a group gets is handed to `receive`, and forgotten by the broker once that has returned.
 *
 * @param url kafka://host:port,host:port
 * @param groups the topics that each group receives.
 */
export async function connect(url, groups, receive) {
  const brokers = url.replace(/^kafka:\/\//, '').split(',');
  const kafka = new Kafka({ clientId: 'courier', brokers, logLevel: logLevel.NOTHING });
  await createTopics(kafka.admin(), Object.values(groups).flat());

  let lose;
  const lost = new Promise((_, reject) => (lose = reject));
  lost.catch(() => {}); // whoever races with it hears of it

  const producer = kafka.producer(PRODUCER);
  const consumers = Object.entries(groups).map(([groupId, topics]) => {
    const consumer = kafka.consumer({ ...CONSUMER, groupId });
    consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || lose(payload.error));
    return { consumer, topics };
  });
  await Promise.all([producer.connect(), ...consumers.map((one) => consume(one.consumer, one.topics, receive))]);

  return {
    lost,
    otherNames: () => [],
    async publish({ topic, key, headers, body }) {
      await producer.send({ topic, messages: [{ key, value: body, headers: { ...headers, 'scoop-topic': topic } }] });
    },
    async close() {
      await Promise.allSettled([...consumers.map((one) => one.consumer.disconnect()), producer.disconnect()]);
    },
  };
}

async function createTopics(admin, topics) {
  await admin.connect();
  try {
    await admin.createTopics({ topics: topics.map((topic) => ({ topic })) }); // those that exist are left as they are
  } finally {
    await admin.disconnect();
  }
}

async function consume(consumer, topics, receive) {
  await consumer.connect();
  await consumer.subscribe({ topics, fromBeginning: true });
  await consumer.run({ eachBatch: ({ batch }) => receive(batch.messages.map((one) => received(batch, one))) });
}

function received({ topic, partition }, { key, value, headers, offset, timestamp }) {
  const { 'content-type': contentType, ...others } = Object.fromEntries(
    Object.entries(headers ?? {}).map(([name, header]) => [name, text(header)]),
  );
  return {
    topic,
    published: topic,
    key: key && key.toString(),
    headers: others,
    body: value ?? Buffer.alloc(0),
    contentType,
    place: ['kafka', topic, partition, offset, timestamp],
  };
}
