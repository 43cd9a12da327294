// What the peers in JavaScript say to the harness, and how (`README.md` beside this file).
import { createInterface } from 'node:readline';

/** Jobs of one bulk call. */
export const BULK = 1_000;

export const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
// The wall clock with a fraction of a millisecond; the harness and the processes of a run compare these.
export const now = () => performance.timeOrigin + performance.now();
export const payload = (bytes) => ({ pad: 'x'.repeat(bytes - JSON.stringify({ pad: '' }).length) });

let lines;
const waiting = [];

/** The next line of standard input. */
export function line() {
  lines ??= createInterface({ input: process.stdin }).on('line', () => waiting.shift()?.());
  return new Promise((resolve) => waiting.push(resolve));
}

/** Says that it is ready and waits for the harness to say go: start-up is not measured, for nobody. */
export async function gate() {
  const go = line();
  say({ event: 'ready' });
  await go;
}

/** Calls `step` until it answers false, `inFlight` calls at a time. */
export async function repeat(inFlight, step) {
  const loop = async () => {
    while (await step());
  };
  await Promise.all(Array.from({ length: inFlight }, loop));
}

/** Counts a worker's jobs and says how far it is, until the harness says stop: then when it began and ended, and the program ends. */
export function tally() {
  const counted = {
    stopped: false,
    completed: 0,
    begun: 0,
    last: 0,
    begin(at = now()) { counted.begun ||= at; },
    complete(jobs = 1) {
      counted.completed += jobs;
      counted.last = now();
    },
  };
  let said = 0;
  setInterval(() => {
    if (counted.completed === said) return;
    said = counted.completed;
    say({ event: 'count', jobs: said });
  }, 10);
  line().then(() => {
    counted.stopped = true;
    process.stdout.write(
      `${JSON.stringify({ event: 'begun', at: counted.begun })}\n${JSON.stringify({ event: 'done', at: counted.last })}\n`,
      () => process.exit(0),
    );
  });
  return counted;
}
