/** Failures as data, which every language reads: a traceback goes from service to service. */

const FRAME = /^\s*at (?:async )?(?:(?:new |Object\.)?(.+?) \()?(.+?):(\d+):\d+\)?$/;
const HERE = new URL('.', import.meta.url).href;
const MACHINERY = ['failure', 'home', 'participant', 'runs', 'steps'].map((name) => `${HERE}${name}.js`);
const DEEPEST = 32; // levels of causes
const LONGEST = 65_536; // characters of a message

/** Return a failure that no error stands behind, such as `ChildRolledBack`; `source` is who records it. */
export function failure(type, message, source, causes = []) {
  return { type, message, source, stackTrace: [], causes };
}

/** Return an error, or whatever else was thrown, as a failure. */
export function failureOf(error, source, depth = 1) {
  if (!(error instanceof Error)) return failure(typeof error, String(error), source);
  const type = error.constructor.name === 'Error' ? error.name : error.constructor.name;
  const behind = [error.cause, ...(error.errors ?? [])].filter((cause) => cause != null && depth < DEEPEST);
  const causes = behind.map((cause) => failureOf(cause, source, depth + 1));
  return { ...failure(type, error.message.slice(0, LONGEST), source, causes), stackTrace: framesOf(error) };
}

/** Return the place in the program that has called what calls this. */
export const launchedFrom = () => framesOf(new Error()).at(-1);

/** Return the places where an error came by, outermost first: those of the program, and none of the machinery. */
function framesOf(error) {
  return String(error.stack)
    .split('\n')
    .map((line) => FRAME.exec(line))
    .filter((match) => match && !match[2].startsWith('node:') && !MACHINERY.includes(match[2]))
    .map(([, functionName, file, line]) => {
      // Never a path that tells how a machine is laid out.
      const fileName = file.startsWith(HERE) ? file.slice(HERE.length) : file.split('/').at(-1);
      const className = fileName.replace(/\.\w+$/, '');
      return { fileName, lineNumber: Number(line), className, functionName: functionName ?? null };
    })
    .reverse();
}
