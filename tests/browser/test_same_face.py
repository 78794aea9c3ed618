"""Files that share name, size and date, in a browser: each is finished with its own bytes, whatever was cut before."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.processes import Platform

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

#: `face(bytes)` makes a file; `hex(bytes)` is its SHA-256; `ended(task)` waits for the task's end; `finish(file)` does
#: what a page does that is given a file: it goes on with its upload, or begins one.
TOOLS = """
  const { announce, fetchTask, hasEnded, send, submit, unfinished } = await import("/static/headway.js");
  const face = (bytes) => new File([bytes], "data.bin", { lastModified: 1700000000000 });
  const digits = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const hex = async (bytes) => digits(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
  const random = (size) => crypto.getRandomValues(new Uint8Array(size));
  const ended = async ({ task_id }) => {
    for (;;) {
      const task = await fetchTask(task_id);
      if (hasEnded(task)) return task;
      await new Promise((next) => setTimeout(next, 50));
    }
  };
  const work = { processor: "checksum" };
  const finish = async (file) => {
    let another = 0;
    const found = await unfinished(file, { ...work, onanother: () => another++ });
    const task = found ?? (await announce(file, work));
    await send(task, file);
    return { task: await ended(task), found: Boolean(found), another };
  };
"""


def with_tools(body: str) -> str:
    return f"async () => {{{TOOLS}{body}}}"


async def test_a_hundred_at_once_are_a_hundred_tasks(page: Page, platform: Platform) -> None:
    await page.goto(f"{platform.url}/healthz")
    wrong = await page.evaluate(
        with_tools("""
          const all = Array.from({ length: 100 }, () => random(1000));
          const done = await Promise.all(all.map((bytes) => finish(face(bytes))));
          const ids = new Set(done.map(({ task }) => task.task_id));
          const sums = await Promise.all(all.map(hex));
          return [ids.size, done.filter(({ task }, place) => task.result?.summary.sha256 !== sums[place]).length];
        """)
    )
    assert wrong == [100, 0]


async def test_two_hundred_cuts_gone_on_with_any_file_of_the_same_face_are_never_wrong(
    page: Page, platform: Platform
) -> None:
    await page.goto(f"{platform.url}/healthz")
    told = await page.evaluate(
        with_tools("""
          const real = fetch;
          // A line that is cut: the piece arrives as far as `cuts` says, and the page hears of an error.
          const cuts = new WeakMap();
          globalThis.fetch = async (url, init) => {
            const cut = cuts.get(init?.signal);
            if (init?.method !== "PATCH" || cut === undefined) return real(url, init);
            if (cut.bytes) await real(url, { ...init, signal: undefined, body: init.body.slice(0, cut.bytes) });
            cut.stop.abort();
            throw new TypeError("cut");
          };
          const cutUpload = async (file, bytes) => {
            const stop = new AbortController();
            cuts.set(stop.signal, { bytes, stop });
            const task = await announce(file, work);
            await send(task, file, { signal: stop.signal }).catch(() => {});
          };
          const told = { wrong: 0, found: 0, another: 0 };
          const one = async (number) => {
            const size = 1000 + number * 37; // a face of its own
            const first = random(size);
            await cutUpload(face(first), Math.floor(Math.random() * (size - 1)));
            const kept = [0, size, Math.floor(Math.random() * size)][number % 3];
            const second = random(size);
            second.set(first.subarray(0, kept));
            const { task, found, another } = await finish(face(second));
            told.found += found;
            told.another += another;
            if (task.result?.summary.sha256 !== (await hex(second))) told.wrong++;
          };
          for (let number = 0; number < 200; number += 4)
            await Promise.all([0, 1, 2, 3].map((next) => one(number + next)));
          return told;
        """)
    )
    assert told["wrong"] == 0
    assert told["found"] > 50  # the same file went on
    assert told["another"] > 50  # another began anew, and that was said


async def test_the_digest_of_a_page_without_web_cryptography_is_the_same(page: Page, platform: Platform) -> None:
    await page.goto(f"{platform.url}/healthz")
    wrong = await page.evaluate(
        with_tools("""
          const { plainSha256 } = await import("/static/sha256.js");
          const wrong = [];
          for (const size of [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 65_000]) {
            const bytes = random(size);
            if (digits(plainSha256(bytes)) !== (await hex(bytes))) wrong.push(size);
          }
          return wrong;
        """)
    )
    assert wrong == []


async def test_an_answer_without_an_offset_is_not_asked_again_at_once(page: Page, platform: Platform) -> None:
    """A proxy that answers 200 to everything would have the file sent to it as fast as it takes it."""
    await page.goto(f"{platform.url}/healthz")
    tries = await page.evaluate(
        with_tools("""
          const real = fetch;
          let tries = 0;
          globalThis.fetch = async (url, init) => {
            if (init?.method !== "PATCH") return real(url, init);
            tries++;
            return new Response("");
          };
          const stop = new AbortController();
          setTimeout(() => stop.abort(), 2000);
          const file = face(random(1000));
          await send(await announce(file, work), file, { signal: stop.signal }).catch(() => {});
          return tries;
        """)
    )
    assert 1 <= tries <= 8


CHOOSE = """async ({ many, seed }) => {
  const data = new DataTransfer();
  for (let number = 0; number < many; number++)
    data.items.add(new File([new Uint8Array(4000).fill(seed + number)], "report.bin", { lastModified: 1700000000000 }));
  const input = document.querySelector("#file");
  input.files = data.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}"""


async def test_twenty_files_of_one_face_are_twenty_tasks_on_the_page(page: Page, platform: Platform) -> None:
    await page.goto(platform.url)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    await page.evaluate(CHOOSE, {"many": 20, "seed": 0})
    await page.get_by_label("Processor", exact=True).select_option("checksum")
    await page.get_by_role("button", name="Start", exact=True).click()
    counted = """async () => {
      const { tasks } = await (await fetch("/tasks?limit=500&status=completed")).json();
      const ours = tasks.filter((task) => task.filename === "report.bin");
      return new Set(ours.map((task) => task.result.summary.sha256)).size;
    }"""
    await page.wait_for_function(f"async () => (await ({counted})()) === 20")


async def test_another_file_in_place_of_a_cut_one_is_a_new_task_and_that_is_said(
    page: Page, own_platform: Platform
) -> None:
    own_platform.start_worker()
    own_platform.start_api()
    await page.goto(own_platform.url)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    cut = "globalThis.real ??= fetch; globalThis.fetch = async (url, init) => {"
    cut += " if (init?.method !== 'PATCH') return real(url, init);"
    cut += " await real(url, { ...init, body: init.body.slice(0, 1500) }); return new Promise(() => {}); }"
    await page.evaluate(cut)
    await page.evaluate(CHOOSE, {"many": 1, "seed": 1})
    await page.get_by_label("Processor", exact=True).select_option("checksum")
    await page.get_by_role("button", name="Start", exact=True).click()
    stored = "async () => (await (await fetch('/tasks')).json()).tasks.some((task) => task.done === 1500)"
    await page.wait_for_function(stored)
    page.once("dialog", lambda dialog: dialog.accept())
    await page.goto("about:blank")
    await page.goto(own_platform.url)
    # The page before holds its claim until the browser has let go of it.
    free = "async () => !(await navigator.locks.query()).held.some(({ name }) => name.startsWith('headway-upload-'))"
    await page.wait_for_function(free)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    await page.evaluate(CHOOSE, {"many": 1, "seed": 2})
    await page.get_by_label("Processor", exact=True).select_option("checksum")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(page.get_by_text("it is another file")).to_be_visible()
    await expect(page.locator("#task-status")).to_have_text("completed", ignore_case=True)
    await page.goto(own_platform.url)
    await page.evaluate(CHOOSE, {"many": 1, "seed": 1})
    await page.get_by_label("Processor", exact=True).select_option("checksum")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(page.locator("#task-status")).to_have_text("completed", ignore_case=True)
    sums = "async () => (await (await fetch('/tasks')).json()).tasks.map((task) => task.status)"
    assert await page.evaluate(f"({sums})()") == ["completed", "completed"]
