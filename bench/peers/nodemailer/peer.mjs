// nodemailer as a contestant of the benchmark. How a peer talks to the harness stands in ../README.md.
//
// With its pool, as many connections as ours keeps, and as many mails on each as there are: what was fastest.

import { createRequire } from 'node:module';
import nodemailer from 'nodemailer';
import { gate, now, repeat, say } from '../protocol.mjs';

const require = createRequire(import.meta.url);
const TEXT = 'Hello,\n\nthis is what happened in your week: three prompts were liked, one was copied, and two people follow you now.\n\nAll of it: https://promptlockr.example/week\n';
const HTML = '<p>Hello,</p><p>this is what happened in your week: three prompts were liked, one was copied, and two people follow you now.</p><p><a href="https://promptlockr.example/week">All of it</a></p>';

const commands = {
  async versions() {
    say({ event: 'versions', text: `nodemailer ${require('nodemailer/package.json').version} with its pool, Node.js ${process.versions.node}` });
  },

  /** Sends `messages` mails over so many connections. */
  async mail(messages, connections, inFlight) {
    const { hostname, port } = new URL(process.env.BENCH_SINK_URL);
    const transport = nodemailer.createTransport({
      host: hostname, port: Number(port), secure: false, ignoreTLS: true, pool: true, maxConnections: connections, maxMessages: Infinity,
    });
    await gate();
    let sent = 0;
    say({ event: 'begun', at: now() });
    await repeat(inFlight, async () => {
      if (sent === messages) return false;
      sent += 1;
      await transport.sendMail({ from: 'no-reply@bench.example', to: `person-${sent}@example.com`, subject: 'Your week', text: TEXT, html: HTML });
      return true;
    });
    say({ event: 'done', at: now() });
    transport.close();
  },
};

const [command, ...numbers] = process.argv.slice(2);
if (!Object.hasOwn(commands, command)) {
  console.error(`unknown command ${command}; there are ${Object.keys(commands).join(', ')}`);
  process.exit(2);
}
await commands[command](...numbers.map(Number));
process.exit(0);
