// npm's opossum as a judge: says what it does with traces of calls, on a clock of the test's own.
// In, by standard input: [{minimum, percent, open, calls: [[at, ok], …]}, …], times in ms. Out: [[[allowed, "closed" | "open"], …], …].
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { mock } from 'node:test';

const CircuitBreaker = createRequire(process.cwd() + '/')('opossum');
const traces = JSON.parse(readFileSync(0, 'utf8'));
mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] });
const answers = [];
for (const { minimum, percent, open, calls } of traces) {
  mock.timers.reset();
  mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] });
  const breaker = new CircuitBreaker(async (ok) => { if (!ok) throw new Error('as asked'); }, {
    timeout: false, rollingCountTimeout: 10000, rollingCountBuckets: 10, volumeThreshold: minimum,
    // It opens above its threshold, we at ours.
    errorThresholdPercentage: percent - 0.0001, resetTimeout: open, enableSnapshots: false,
  });
  let now = 0;
  const said = [];
  for (const [at, ok] of calls) {
    mock.timers.tick(at - now);
    now = at;
    // It counts what it refuses as fired, which dilutes its window; so what it would refuse is not asked.
    const allowed = !breaker.opened;
    if (allowed) await breaker.fire(ok).catch(() => {});
    said.push([allowed, breaker.closed ? 'closed' : 'open']);
  }
  breaker.shutdown();
  answers.push(said);
}
process.stdout.write(JSON.stringify(answers));
