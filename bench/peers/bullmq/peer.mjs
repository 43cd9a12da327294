// BullMQ as a contestant of the benchmark. How a peer talks to the harness stands in ../README.md.
//
// Settings are the fastest that BullMQ was seen to reach here, durable records aside: concurrency 100, ioredis, bulk adds of
// 1,000. Finished jobs are kept (BullMQ's default), as ours are.

import { createRequire } from 'node:module';
import { Queue, Worker } from 'bullmq';
import IORedis from 'ioredis';
import { BULK, gate, now, payload, repeat, say, tally } from '../protocol.mjs';

const require = createRequire(import.meta.url);
const NAME = 'bench';
const connect = () => new IORedis(process.env.BENCH_REDIS_URL, { maxRetriesPerRequest: null });

async function queue() {
  const queue = new Queue(NAME, { connection: connect() });
  await queue.waitUntilReady();
  return queue;
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

  /** Works off what waits; a job is complete when Redis has acknowledged it. */
  async drain(concurrency) {
    let counted;
    const worker = new Worker(NAME, async () => counted.begin(), { connection: connect(), concurrency, autorun: false });
    await worker.waitUntilReady();
    worker.on('completed', () => counted.complete());
    await gate();
    counted = tally();
    await worker.run();
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
