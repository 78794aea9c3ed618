// Node's own http and one subscription for all: what a careful reader of the manuals would write. PORT, REDIS_PORT.
import http from 'node:http';
import { createClient } from 'redis';

const redis = createClient({ url: `redis://127.0.0.1:${process.env.REDIS_PORT}` });
await redis.connect();
const watchers = new Map();

function onMessage(message, channel) {
  const id = message.indexOf(' ');
  const frame = Buffer.from(`id: ${message.slice(0, id)}\ndata: ${message.slice(message.indexOf(' ', id + 1) + 1)}\n\n`);
  for (const response of watchers.get(channel)) response.write(frame);
}

http.createServer(async (request, response) => {
  const channel = `headway:task:${request.url.split('/')[2]}:live`;
  let those = watchers.get(channel);
  if (!those) {
    watchers.set(channel, (those = new Set()));
    await redis.subscribe(channel, onMessage);
  }
  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
  response.flushHeaders();
  those.add(response);
  request.on('close', () => those.delete(response));
}).listen(Number(process.env.PORT), '127.0.0.1', 4096);
