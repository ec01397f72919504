/** Runs the courier: `node service.js`, until it is told to stop, and `node service.js retry RUN`. */

import { makeCourier } from './courier.js';

const { BROKER = 'kafka://localhost:9092', HOME_FILE = 'courier.db', HOME_NAME, HOME_PREFIX } = process.env;

const courier = makeCourier({ name: HOME_NAME, file: HOME_FILE, prefix: HOME_PREFIX });
const [command, id] = process.argv.slice(2);

if (command === 'retry') {
  await courier.retry(id);
} else {
  const { connect } = await import(BROKER.startsWith('kafka:') ? './kafka.js' : './rabbitmq.js');
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => courier.stop());
  await courier.run((groups, receive) => connect(BROKER, groups, receive));
}
