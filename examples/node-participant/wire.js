/** The wire: ids, and what is in the headers of a message. docs/protocol.md of scoop_outbox specifies it. */

import { createHash, randomBytes } from 'node:crypto';

/** The version of control messages, which is what homes say to each other. */
export const VERSION = 1;

export const JSON_TYPE = 'application/json';

/** Tell whether a body is JSON. */
export const isJson = (contentType) => /^application\/json *(;|$)/i.test(contentType ?? '');

const uuid = (hex) => hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
const isUuid = (text) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
/** A service and a saga each, and perhaps the home that is to handle it: this service has one home. */
const isPairs = (value) =>
  Array.isArray(value) && value.every((pair) => Array.isArray(pair) && (pair[2] == null || isUuid(pair[2])));

/** Return a new id of version 7: ids sort by the time at which they were made. */
export function newId() {
  const random = randomBytes(10).toString('hex');
  const variant = (8 + (parseInt(random[3], 16) & 3)).toString(16);
  return uuid(Date.now().toString(16).padStart(12, '0') + '7' + random.slice(0, 3) + variant + random.slice(4, 19));
}

/** Return the id of a run: whoever knows the message knows it, and a message that comes again starts no second one. */
export function runId(message, service, saga) {
  const digest = createHash('md5').update(`${message}\n${[...service].length}\n${service}${saga}`).digest('hex');
  return `${message.slice(0, 19)}8${digest.slice(0, 3)}-${digest.slice(3, 15)}`;
}

/** Return the id of a message of another producer: the same whenever it comes again. */
function derivedId(parts) {
  const digest = createHash('sha256').update(JSON.stringify(parts)).digest('hex');
  return uuid(`${digest.slice(0, 12)}8${digest.slice(13, 16)}8${digest.slice(17, 32)}`);
}

/**
 * Return a message with what its headers say.
 *
 * @param received what a transport hands over: topic, key, headers, body and contentType; `published`, which is what
 *   the header `scoop-topic` holds if the message is the one that was launched; and `place`, which no other one has.
 * @throws if it cannot be meant: then it is a dead letter.
 */
export function readMessage({ topic, key, headers, body, contentType, published, place }) {
  const others = Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith('scoop-')));
  // Stream processors pass on the headers of what they read with what they write: nothing that ours say counts there.
  const ours = (headers['scoop-topic'] ?? published) === published ? headers : {};
  const foreign = 'ce_id' in others ? [topic, others.ce_id, others.ce_source] : place;
  const id = (ours['scoop-id'] ?? derivedId(foreign)).toLowerCase();
  const lineage = ours['scoop-lineage']?.split(',') ?? [];
  if (![id, ...lineage].every(isUuid)) throw new Error('its header scoop-id or scoop-lineage holds no id');
  if (isJson(contentType)) JSON.parse(body);
  return {
    id,
    topic,
    key,
    body,
    contentType,
    headers: others,
    home: ours['scoop-home'],
    replyTo: ours['scoop-reply-to'],
    lineage,
    expects: parsed(ours, 'scoop-expects', isPairs) ?? [],
    context: parsed(ours, 'scoop-context', isObject) ?? {},
    deadlines: parsed(ours, 'scoop-deadlines', isObject),
    launchedAt: parsed(ours, 'scoop-launched-at', isObject),
  };
}

function parsed(headers, name, isMeant) {
  if (headers[name] === undefined) return undefined;
  const value = JSON.parse(headers[name]);
  if (!isMeant(value)) throw new Error(`its header ${name} is malformed`);
  return value;
}
