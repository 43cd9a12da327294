// pg-boss as a contestant of the benchmark: jobs in Postgres, so the one peer whose jobs are as durable as ours.
// How a peer talks to the harness stands in ../README.md.
//
// The fastest settings seen: batches of 5,000, the shortest poll that it allows (half a second).
import { createRequire } from 'node:module';
import PgBoss from 'pg-boss';
import { BULK, gate, now, payload, repeat, say, tally } from '../protocol.mjs';

const require = createRequire(import.meta.url);
const NAME = 'bench';
const BATCH = 5_000;
const POLL_SECONDS = 0.5;

async function start(max) {
  const boss = new PgBoss({ connectionString: process.env.BENCH_POSTGRES_URL, max, supervise: false, schedule: false });
  boss.on('error', (error) => console.error(error));
  await boss.start();
  await boss.createQueue(NAME);
  return boss;
}

const commands = {
  async versions() {
    const version = require('pg-boss/package.json').version;
    say({ event: 'versions', text: `pg-boss ${version} on Postgres (batches of ${BATCH}, poll ${POLL_SECONDS} s), Node.js ${process.versions.node}` });
  },

  async bulk(jobs, bytes, inFlight) {
    const boss = await start(inFlight);
    const data = payload(bytes);
    await gate();
    let left = jobs;
    say({ event: 'begun', at: now() });
    await repeat(inFlight, async () => {
      const count = Math.min(BULK, left);
      if (count === 0) return false;
      left -= count;
      await boss.insert(Array.from({ length: count }, () => ({ name: NAME, data })));
      return true;
    });
    say({ event: 'done', at: now() });
  },

  async single(jobs, bytes, inFlight) {
    const boss = await start(10);
    const data = payload(bytes);
    await gate();
    let left = jobs;
    say({ event: 'begun', at: now() });
    await repeat(inFlight, async () => {
      if (left === 0) return false;
      left -= 1;
      await boss.send(NAME, data);
      return true;
    });
    say({ event: 'done', at: now() });
  },

  // `work` sleeps between batches; a loop of `fetch` and `complete`, which it is made of, does not.
  async drain() {
    const boss = await start(4);
    await gate();
    const counted = tally();
    while (!counted.stopped) {
      const asked = now();
      const batch = await boss.fetch(NAME, { batchSize: BATCH });
      if (batch.length === 0) {
        await new Promise((resolve) => setTimeout(resolve, 10));
        continue;
      }
      // Taking a batch of thousands is part of the work.
      counted.begin(asked);
      await boss.complete(NAME, batch.map((job) => job.id));
      counted.complete(batch.length);
    }
  },

  async pickup(jobs) {
    const boss = await start(4);
    const latencies = [];
    let enough;
    const finished = new Promise((resolve) => { enough = resolve; });
    await boss.work(NAME, { batchSize: BATCH, pollingIntervalSeconds: POLL_SECONDS }, async (batch) => {
      for (const job of batch) latencies.push(now() - job.data.sent);
      if (latencies.length >= jobs) enough();
    });
    await gate();
    await finished;
    say({ event: 'done', at: now(), latencies });
  },

  async pace(jobs, bytes, rate) {
    const boss = await start(10);
    const data = payload(bytes);
    await gate();
    const adding = [];
    const begin = performance.now();
    say({ event: 'begun', at: now() });
    for (let number = 0; number < jobs; number += 1) {
      const wait = begin + (number * 1_000) / rate - performance.now();
      if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      adding.push(boss.send(NAME, { ...data, sent: now() }));
    }
    await Promise.all(adding);
    say({ event: 'done', at: now() });
  },
};

const [command, ...numbers] = process.argv.slice(2);
if (!Object.hasOwn(commands, command)) {
  console.error(`unknown command ${command}; there are ${Object.keys(commands).join(', ')}`);
  process.exit(2);
}
await commands[command](...numbers.map(Number));
process.exit(0);
