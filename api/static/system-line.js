// @ts-check
/**
 * One line about the whole: workers, queue, throughput. Nothing polls: the server is asked after something has
 * happened, and at most every two seconds.
 */

import { setText } from "./dom.js";
import { BASE } from "./headway.js";
import * as units from "./units.js";

const AGAIN_MS = 2000;
const MINUTE_MS = 60_000;

export class SystemLine {
  /** @param {HTMLElement} room @param {import("./tasks.js").Tasks} tasks */
  constructor(room, tasks) {
    this.root = room;
    this.tasks = tasks;
    this.timer = 0;
    this.asked = 0;
  }

  /** Something has happened. */
  touch() {
    if (this.timer || document.hidden) return;
    const wait = Math.max(0, this.asked + AGAIN_MS - Date.now());
    this.timer = window.setTimeout(() => void this.ask(), wait);
  }

  async ask() {
    this.timer = 0; // what happens from here on is asked about again
    this.asked = Date.now();
    try {
      const response = await fetch(new URL("readyz", BASE), { cache: "no-store" }); // a 503 has a body too
      this.draw(await response.json());
    } catch {
      setText(this.root, "The server does not answer");
    }
  }

  /** @param {any} ready */
  draw({ checks }) {
    const { workers, redis } = checks;
    if (!redis.ok) return setText(this.root, "Redis is away; waiting for it");
    const now = Date.now();
    const all = this.tasks.all();
    const moving = all.filter(({ status, unit }) => status === "processing" && unit === "bytes");
    const rate = moving.reduce((sum, task) => sum + (task.rate ?? 0), 0);
    const done = all.filter(({ status, finished_at }) => status === "completed" && now - Date.parse(finished_at ?? "") < MINUTE_MS).length;
    this.root.classList.toggle("bad", workers.count === 0);
    setText(this.root, [
      workers.count === 0 ? "No worker is running" : `${workers.count} worker${workers.count === 1 ? "" : "s"}`,
      `${units.number(workers.running ?? 0)} running`,
      `${units.number(workers.queued ?? 0)} queued`,
      rate ? `${units.bytes(Math.round(rate))}/s` : "",
      workers.warning ? "Processors are not confined" : "",
      done ? `${units.number(done)} done in the last minute` : "",
    ].filter(Boolean).join(" · "));
  }
}
