// better-sse: a channel a task, one subscription for all. PORT, REDIS_PORT.
import http from 'node:http';
import { createChannel, createSession } from 'better-sse';
import { createClient } from 'redis';

const redis = createClient({ url: `redis://127.0.0.1:${process.env.REDIS_PORT}` });
await redis.connect();
const channels = new Map();

function onMessage(message, name) {
  const id = message.indexOf(' ');
  const eventId = message.slice(0, id);
  channels.get(name).broadcast(message.slice(message.indexOf(' ', id + 1) + 1), 'message', { eventId });
}

http.createServer(async (request, response) => {
  const name = `headway:task:${request.url.split('/')[2]}:live`;
  let channel = channels.get(name);
  if (!channel) {
    channels.set(name, (channel = createChannel()));
    await redis.subscribe(name, onMessage);
  }
  channel.register(await createSession(request, response, { serializer: (data) => data }));
}).listen(Number(process.env.PORT), '127.0.0.1', 4096);
