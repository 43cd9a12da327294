// An HTTP door as one would build it before BullMQ: fastify, `POST /v1/jobs`, one `add` a request, answered when Redis has it.
// There is no durable record behind the answer, no key, no check of the payload beyond its being JSON.
import { createRequire } from 'node:module';
import { Queue } from 'bullmq';
import Fastify from 'fastify';
import IORedis from 'ioredis';
import { line, now, say } from '../protocol.mjs';

const require = createRequire(import.meta.url);
const commands = {
  async versions() {
    const version = (name) => require(`${name}/package.json`).version;
    say({ event: 'versions', text: `fastify ${version('fastify')} + BullMQ ${version('bullmq')}, Node.js ${process.versions.node}` });
  },

  /** Serves until a line comes. */
  async serve() {
    const connection = new IORedis(process.env.BENCH_REDIS_URL, { maxRetriesPerRequest: null });
    const queue = new Queue('bench', { connection });
    await queue.waitUntilReady();
    const server = Fastify({ logger: false });
    const answer = { response: { 202: { type: 'object', properties: { id: { type: 'string' } } } } };
    server.post('/v1/jobs', { schema: answer }, async (request, reply) => {
      const job = await queue.add(request.body.kind, request.body.payload);
      reply.code(202);
      return { id: job.id };
    });
    await server.listen({ host: '127.0.0.1', port: 0 });
    const stop = line();
    say({ event: 'ready', text: `127.0.0.1:${server.server.address().port}` });
    await stop;
    say({ event: 'done', at: now() });
  },
};

const [command] = process.argv.slice(2);
if (!Object.hasOwn(commands, command)) {
  console.error(`unknown command ${command}; there are ${Object.keys(commands).join(', ')}`);
  process.exit(2);
}
await commands[command]();
process.exit(0);
