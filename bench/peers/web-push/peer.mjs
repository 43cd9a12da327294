// npm's web-push as a contestant of the benchmark. How a peer talks to the harness stands in ../README.md.
//
// `sendNotification` speaks HTTPS only and opens a connection for each message unless told otherwise. So the library seals and signs
// (`generateRequestDetails`), and Node's own client sends over connections that stay open: faster than it comes.

import { createECDH, randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import http from 'node:http';
import webpush from 'web-push';
import { gate, now, repeat, say } from '../protocol.mjs';

const require = createRequire(import.meta.url);

function browser(number) {
  const key = createECDH('prime256v1');
  key.generateKeys();
  return {
    endpoint: `${process.env.BENCH_SINK_URL}/push/${number}`,
    keys: { p256dh: key.getPublicKey('base64url'), auth: randomBytes(16).toString('base64url') },
  };
}

const commands = {
  async versions() {
    say({ event: 'versions', text: `web-push ${require('web-push/package.json').version}, Node.js ${process.versions.node}` });
  },

  /** Pushes `messages` messages to so many browsers in turn. */
  async push(messages, browsers, inFlight) {
    const all = Array.from({ length: browsers }, (_, number) => browser(number));
    const agent = new http.Agent({ keepAlive: true, maxSockets: inFlight });
    const vapidDetails = { subject: 'mailto:operator@offstage.example', ...webpush.generateVAPIDKeys() };
    const payload = JSON.stringify({ id: '00000000-0000-0000-0000-000000000000', title: 'Your export is ready', body: 'prompts.csv, 12 MB', url: '/exports/1' });
    const post = ({ endpoint, method, headers, body }) => new Promise((resolve, reject) => {
      const request = http.request(endpoint, { agent, method, headers }, (answer) => {
        answer.resume();
        answer.on('end', () => (answer.statusCode === 201 ? resolve() : reject(new Error(`answered ${answer.statusCode}`))));
      });
      request.on('error', reject);
      request.end(body);
    });
    await gate();
    let sent = 0;
    say({ event: 'begun', at: now() });
    await repeat(inFlight, async () => {
      if (sent === messages) return false;
      const to = all[sent % browsers];
      sent += 1;
      await post(webpush.generateRequestDetails(to, payload, { TTL: 86_400, urgency: 'normal', topic: 'export', contentEncoding: 'aes128gcm', vapidDetails }));
      return true;
    });
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
