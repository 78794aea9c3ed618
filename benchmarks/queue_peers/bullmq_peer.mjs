// BullMQ as it comes. `worker` or `client`, see noop.py.
import { createInterface } from "node:readline";
import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";

const { PEER_REDIS_URL, PEER_CONCURRENCY = "10", PEER_JOBS = "0" } = process.env;
const connection = new Redis(PEER_REDIS_URL, { maxRetriesPerRequest: null });
const say = (text) => process.stdout.write(text + "\n");

if (process.argv[2] === "worker") {
  let count = 0;
  const worker = new Worker(
    "jobs",
    async (job) => {
      const now = process.hrtime.bigint();
      if (job.data.begun !== "0") {
        say(`picked ${now - BigInt(job.data.begun)}`);
        return;
      }
      count += 1;
      if (count === 1) say(`first ${now}`);
      if (count === Number(PEER_JOBS)) say(`last ${now}`);
    },
    { connection, concurrency: Number(PEER_CONCURRENCY) },
  );
  await worker.waitUntilReady();
  say("ready");
} else {
  const queue = new Queue("jobs", { connection });
  await queue.waitUntilReady();
  const enqueue = (begun) => queue.add("job", { begun: String(begun) });
  say("ready");
  for await (const line of createInterface({ input: process.stdin })) {
    const [verb, count] = line.trim().split(" ");
    if (verb === "one") {
      await enqueue(process.hrtime.bigint());
    } else {
      for (let start = 0; start < Number(count); start += 50) {
        await Promise.all(Array.from({ length: Math.min(50, Number(count) - start) }, () => enqueue(0n)));
      }
      say("filled");
    }
  }
}
