/** RabbitMQ: a topic is a routing key of amq.topic, or an exchange, a slash and a routing key; a group is a queue. */

import amqp from 'amqplib';

const EXCHANGE = 'amq.topic';
const PREFETCH = 100;

const text = (value) => (typeof value === 'object' ? JSON.stringify(value) : String(value));

/** Return the exchange and the routing key that a topic stands for. */
function route(topic) {
  const slash = topic.indexOf('/');
  return slash < 0 ? [EXCHANGE, topic] : [topic.slice(0, slash), topic.slice(slash + 1)];
}

/** Return the other way to write a topic, if there is one. */
function otherNames(topic) {
  const [exchange, routingKey] = route(topic);
  if (exchange !== EXCHANGE) return [];
  return [topic === routingKey ? `${EXCHANGE}/${routingKey}` : routingKey];
}

/**
 * Connect; what a group gets is handed to `receive`, and forgotten by the broker once that has returned.
 *
 * @param url amqp://user:password@host/
 * @param groups the topics that each group receives.
 */
export async function connect(url, groups, receive) {
  const connection = await amqp.connect(url);
  const lost = new Promise((_, reject) => {
    connection.on('error', reject);
    connection.on('close', () => reject(new Error('RabbitMQ has closed the connection')));
  });
  lost.catch(() => {}); // whoever races with it hears of it

  const channel = await connection.createConfirmChannel();
  channel.on('error', () => connection.close().catch(() => {}));
  const returned = new Set(); // what no queue gets comes back just before it is confirmed
  channel.on('return', ({ properties }) => returned.add(properties.messageId));
  await channel.prefetch(PREFETCH);
  // RabbitMQ 4 drops what was delivered 20 times, unless the queue says that it must not.
  const version = Number.parseInt(connection.connection.serverProperties.version, 10);
  const unlimited = version >= 4 ? { 'x-delivery-limit': -1 } : {};
  for (const [queue, topics] of Object.entries(groups)) {
    await channel.assertQueue(queue, { durable: true, arguments: { 'x-queue-type': 'quorum', ...unlimited } });
    for (const [exchange, routingKey] of topics.map(route)) await channel.bindQueue(queue, exchange, routingKey);
    await channel.consume(queue, async (delivery) => {
      if (delivery === null) return connection.close(); // the queue was deleted
      await receive([received(delivery)]).then(() => channel.ack(delivery)).catch(() => connection.close());
    });
  }

  return {
    lost,
    otherNames,
    async publish({ topic, key, headers, body }) {
      const [exchange, routingKey] = route(topic);
      const { 'content-type': contentType, ...others } = headers;
      const messageId = headers['scoop-id'];
      const timestamp = Math.floor(Date.now() / 1000);
      const all = { ...others, 'scoop-topic': `${exchange}/${routingKey}`, ...(key && { 'scoop-key': key }) };
      const options = { messageId, contentType, timestamp, headers: all, persistent: true, mandatory: true };
      await new Promise((resolve, reject) => {
        channel.publish(exchange, routingKey, body, options, (error) => (error ? reject(error) : resolve()));
      });
      if (returned.delete(messageId)) throw new Error('no queue is bound for it');
    },
    async close() {
      await connection.close();
    },
  };
}

function received({ content, fields, properties }) {
  const { exchange, routingKey } = fields;
  const topic = exchange === EXCHANGE ? routingKey : `${exchange}/${routingKey}`;
  const { 'scoop-key': key = null, ...headers } = Object.fromEntries(
    Object.entries(properties.headers ?? {}).map(([name, value]) => [name, text(value)]),
  );
  const { messageId, appId, contentType, timestamp } = properties;
  return {
    topic,
    published: `${exchange}/${routingKey}`,
    key,
    headers,
    body: content,
    contentType,
    // Two messages without an id that say exactly the same are taken for one.
    place: ['amqp', topic, ...(messageId ? [appId, messageId] : [timestamp, headers, content.toString('base64')])],
  };
}
