// BullMQ as a contestant of the benchmark. How a peer talks to the harness stands in ../README.md.
//
// Settings are the fastest that BullMQ was seen to reach here, durable records aside: concurrency 100, ioredis, bulk adds of
// 1,000. Finished jobs are kept (BullMQ's default), as ours are.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { Queue, Worker } from 'bullmq';
import IORedis from 'ioredis';

const require = createRequire(import.meta.url);
const NAME = 'bench';
const BULK = 1_000;

const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
// The wall clock with a fraction of a millisecond; the harness and the two processes of a pick-up compare these.
const now = () => performance.timeOrigin + performance.now();
const connect = () => new IORedis(process.env.BENCH_REDIS_URL, { maxRetriesPerRequest: null });
const payload = (bytes) => ({ pad: 'x'.repeat(bytes - JSON.stringify({ pad: '' }).length) });

/** Says that it is ready and waits for the harness to say go: start-up is not measured, for nobody. */
async function gate() {
  const lines = createInterface({ input: process.stdin });
  say({ event: 'ready' });
  await new Promise((resolve) => lines.once('line', resolve));
}

async function queue() {
  const queue = new Queue(NAME, { connection: connect() });
  await queue.waitUntilReady();
  return queue;
}

/** Calls `step` until it answers false, `inFlight` calls at a time. */
async function repeat(inFlight, step) {
  const loop = async () => {
    while (await step());
  };
  await Promise.all(Array.from({ length: inFlight }, loop));
}

const commands = {
  async versions() {
    const version = (name) => require(`${name}/package.json`).version;
    say({ event: 'versions', text: `BullMQ ${version('bullmq')}, ioredis ${version('ioredis')}, Node.js ${process.versions.node}` });
  },

  /** Adds jobs in bulk. */
  async bulk(jobs, bytes, inFlight) {
    const target = await queue();
    const data = payload(bytes);
    await gate();
    let left = jobs;
    say({ event: 'begun', at: now() });
    await repeat(inFlight, async () => {
      const count = Math.min(BULK, left);
      if (count === 0) return false;
      left -= count;
      await target.addBulk(Array.from({ length: count }, () => ({ name: 'probe', data })));
      return true;
    });
    say({ event: 'done', at: now() });
    await target.close();
  },

  /** Adds jobs one by one, several calls at a time. */
  async single(jobs, bytes, inFlight) {
    const target = await queue();
    const data = payload(bytes);
    await gate();
    let left = jobs;
    say({ event: 'begun', at: now() });
    await repeat(inFlight, async () => {
      if (left === 0) return false;
      left -= 1;
      await target.add('probe', data);
      return true;
    });
    say({ event: 'done', at: now() });
    await target.close();
  },

  /** Works off what waits: `begun` when the first job starts, `done` when the last one's completion was acknowledged. */
  async drain(jobs, concurrency) {
    let begun = 0;
    let completed = 0;
    const worker = new Worker(NAME, async () => { begun ||= now(); }, { connection: connect(), concurrency, autorun: false });
    await worker.waitUntilReady();
    await gate();
    const finished = new Promise((resolve) => {
      worker.on('completed', () => {
        completed += 1;
        if (completed === jobs) resolve();
      });
    });
    worker.run();
    await finished;
    const done = now();
    say({ event: 'begun', at: begun });
    say({ event: 'done', at: done });
    await worker.close();
  },

  /** Waits for paced jobs and reports each one's time from the call of `add` to its start, in milliseconds. */
  async pickup(jobs, concurrency) {
    const latencies = [];
    let enough;
    const finished = new Promise((resolve) => { enough = resolve; });
    const worker = new Worker(NAME, async (job) => {
      latencies.push(now() - job.data.sent);
      if (latencies.length === jobs) enough();
    }, { connection: connect(), concurrency, autorun: false });
    await worker.waitUntilReady();
    worker.run();
    await gate();
    await finished;
    say({ event: 'done', at: now(), latencies });
    await worker.close();
  },

  /** Adds `jobs` jobs, `rate` a second, each when it is due, whatever became of the one before. */
  async pace(jobs, bytes, rate) {
    const target = await queue();
    const data = payload(bytes);
    await gate();
    const adding = [];
    const start = performance.now();
    say({ event: 'begun', at: now() });
    for (let number = 0; number < jobs; number += 1) {
      const due = start + (number * 1_000) / rate;
      const wait = due - performance.now();
      if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      adding.push(target.add('probe', { ...data, sent: now() }));
    }
    await Promise.all(adding);
    say({ event: 'done', at: now() });
    await target.close();
  },
};

const [command, ...numbers] = process.argv.slice(2);
if (!Object.hasOwn(commands, command)) {
  console.error(`unknown command ${command}; there are ${Object.keys(commands).join(', ')}`);
  process.exit(2);
}
await commands[command](...numbers.map(Number));
process.exit(0);
