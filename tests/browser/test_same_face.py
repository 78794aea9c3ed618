"""Files that share name, size and date, in a browser: each is finished with its own bytes, whatever was cut before."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import httpx
import pytest
from playwright.async_api import BrowserContext, FilePayload, Page, expect

from tests.integration.test_tus import VERSION, metadata, offset_of, send
from tests.integration.test_upload_digests import FACE_CUTS
from tests.processes import Platform
from tests.waiting import PATIENCE_SECONDS, POLL_SECONDS

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


async def test_cuts_gone_on_with_any_file_of_the_same_face_are_never_wrong(page: Page, platform: Platform) -> None:
    await page.goto(f"{platform.url}/healthz")
    told = await page.evaluate(
        with_tools(
            """
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
          let seed = 26; // the same cuts each time
          const chance = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
          const one = async (number) => {
            const size = 1000 + number * 37; // a face of its own
            const first = random(size);
            await cutUpload(face(first), Math.floor(chance() * (size - 1)));
            const kept = [0, size, Math.floor(chance() * size)][number % 3];
            const second = random(size);
            second.set(first.subarray(0, kept));
            const { task, found, another } = await finish(face(second));
            told.found += found;
            told.another += another;
            if (task.result?.summary.sha256 !== (await hex(second))) told.wrong++;
          };
          for (let number = 0; number < FACE_CUTS; number += 4)
            await Promise.all([0, 1, 2, 3].map((next) => one(number + next)));
          return told;
        """.replace("FACE_CUTS", str(FACE_CUTS))
        )
    )
    assert told["wrong"] == 0
    assert told["found"] > FACE_CUTS / 4  # the same file went on
    assert told["another"] > FACE_CUTS / 4  # another began anew, and that was said


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


async def until(page: Page, what: str) -> None:
    """Waits until it holds. Playwright's own wait takes the promise of an asynchronous function for a yes."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await page.evaluate(what):
            await asyncio.sleep(POLL_SECONDS)


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
    await until(page, f"async () => (await ({counted})()) === 20")


async def test_another_file_in_place_of_a_cut_one_is_a_new_task_and_that_is_said(
    page: Page, own_platform: Platform
) -> None:
    own_platform.start_worker()
    own_platform.start_api()
    await page.goto(own_platform.url)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    cut = "globalThis.XMLHttpRequest = undefined; globalThis.real ??= fetch; globalThis.fetch = async (url, init) => {"
    cut += " if (init?.method !== 'PATCH') return real(url, init);"
    cut += " await real(url, { ...init, body: init.body.slice(0, 1500) }); return new Promise(() => {}); }"
    await page.evaluate(cut)
    await page.evaluate(CHOOSE, {"many": 1, "seed": 1})
    await page.get_by_label("Processor", exact=True).select_option("checksum")
    await page.get_by_role("button", name="Start", exact=True).click()
    stored = "async () => (await (await fetch('/tasks')).json()).tasks.some((task) => task.done === 1500)"
    await until(page, stored)
    page.once("dialog", lambda dialog: dialog.accept())
    await page.goto("about:blank")
    await page.goto(own_platform.url)
    # The page before holds its claim until the browser has let go of it.
    free = "async () => !(await navigator.locks.query()).held.some(({ name }) => name.startsWith('headway-upload-'))"
    await until(page, free)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    await page.evaluate(CHOOSE, {"many": 1, "seed": 2})
    await page.get_by_label("Processor", exact=True).select_option("checksum")
    await page.get_by_role("button", name="Start", exact=True).click()
    notice = page.locator("#task-notice")
    await expect(notice).to_contain_text("This file differs from the one that was begun earlier")
    await expect(page.locator("#task-problem")).to_be_hidden()  # nothing went wrong
    assert "bad" not in str(await notice.get_attribute("class"))
    await expect(page.locator("#task-status")).to_have_text("completed", ignore_case=True)
    await page.goto(own_platform.url)
    await page.evaluate(CHOOSE, {"many": 1, "seed": 1})
    await page.get_by_label("Processor", exact=True).select_option("checksum")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(page.locator("#task-status")).to_have_text("completed", ignore_case=True)
    sums = "async () => (await (await fetch('/tasks')).json()).tasks.map((task) => task.status)"
    assert await page.evaluate(f"({sums})()") == ["completed", "completed"]


async def started(page: Page, processor: str = "checksum") -> None:
    await page.get_by_label("Processor", exact=True).select_option(processor)
    await page.get_by_role("button", name="Start", exact=True).click()


def sums_of(filename: str) -> str:
    """The SHA-256s of the completed tasks of files with this name, each of them once."""
    return f"""async () => {{
      const {{ tasks }} = await (await fetch("/tasks?limit=500&status=completed")).json();
      const ours = tasks.filter((task) => task.filename === "{filename}");
      return [...new Set(ours.map((task) => task.result.summary.sha256))].sort();
    }}"""


async def completed_sums(page: Page, filename: str, many: int) -> list[str]:
    await until(page, f"async () => (await ({sums_of(filename)})()).length >= {many}")
    sums: list[str] = await page.evaluate(sums_of(filename))
    return sums


def filled(*numbers: int, size: int = 4000) -> list[str]:
    return sorted(hashlib.sha256(bytes([number]) * size).hexdigest() for number in numbers)


async def test_a_hundred_files_of_one_face_chosen_on_the_page_are_each_their_own(
    page: Page, own_platform: Platform
) -> None:
    own_platform.start_worker()
    own_platform.start_api()
    await page.goto(own_platform.url)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    await page.evaluate(CHOOSE, {"many": 100, "seed": 0})
    await started(page)
    assert await completed_sums(page, "report.bin", 100) == filled(*range(100))


async def test_a_folder_that_is_dropped_with_files_of_one_face_is_a_task_for_each(
    page: Page, own_platform: Platform, tmp_path: Path
) -> None:
    """By the browser's own drag and drop, from a real folder."""
    own_platform.start_worker()
    own_platform.start_api()
    for number in range(12):
        folder = tmp_path / "all" / f"day{number}"
        folder.mkdir(parents=True)
        (folder / "data.bin").write_bytes(bytes([number]) * 4000)
        os.utime(folder / "data.bin", (1_700_000_000, 1_700_000_000))
    await page.goto(own_platform.url)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    box = await page.locator("#drop").bounding_box()
    assert box is not None
    devtools = await page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        dragged = {"items": [], "files": [str(tmp_path / "all")], "dragOperationsMask": 1}
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        await devtools.send("Input.dispatchDragEvent", {"type": kind, "data": dragged, **where})
    await started(page)
    assert await completed_sums(page, "data.bin", 12) == filled(*range(12))


async def test_two_tabs_that_send_files_of_one_face_at_once_mix_nothing(page: Page, own_platform: Platform) -> None:
    own_platform.start_worker()
    own_platform.start_api()
    other = await page.context.new_page()
    for tab in (page, other):
        await tab.goto(own_platform.url)
        await expect(tab.get_by_label("Processor", exact=True)).to_be_enabled()
        await tab.get_by_label("Processor", exact=True).select_option("checksum")
    await page.evaluate(CHOOSE, {"many": 15, "seed": 0})
    await other.evaluate(CHOOSE, {"many": 15, "seed": 100})
    await asyncio.gather(started(page), started(other))
    assert await completed_sums(page, "report.bin", 30) == filled(*range(15), *range(100, 115))


#: Sends a part of each piece and never answers, as a line that hangs. Without XMLHttpRequest, the page sends by fetch.
HANG = """() => {
  globalThis.XMLHttpRequest = undefined;
  globalThis.real ??= fetch;
  globalThis.fetch = async (url, init) => {
    if (init?.method !== "PATCH") return real(url, init);
    await real(url, { ...init, signal: undefined, body: init.body.slice(0, 1500) });
    return new Promise(() => {});
  };
}"""


async def test_a_kept_file_that_became_another_is_sent_as_a_new_task(page: Page, own_platform: Platform) -> None:
    """The page keeps the way to a file past a reload; what lies there by then may be another of the same face. The
    browser's own private folder stands for the disk: its handles are kept in the same way."""
    own_platform.start_worker()
    own_platform.start_api()
    await page.goto(own_platform.url)
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    write = """async (number) => {
      const folder = await navigator.storage.getDirectory();
      const handle = await folder.getFileHandle("kept.bin", { create: true });
      const writable = await handle.createWritable();
      await writable.write(new Uint8Array(4000).fill(number));
      await writable.close();
    }"""
    await page.evaluate(write, 1)
    await page.evaluate(HANG)
    task_id = await page.evaluate("""async () => {
      const { announce, send } = await import("/static/headway.js");
      const { holdHandle, keepFile } = await import("/static/kept-files.js");
      const handle = await (await navigator.storage.getDirectory()).getFileHandle("kept.bin");
      const file = await handle.getFile();
      holdHandle(file, handle);
      const task = await announce(file, { processor: "checksum" });
      await keepFile(task.task_id, file);
      void send(task, file).catch(() => {});
      return task.task_id;
    }""")
    await until(page, f"async () => (await (await fetch('/tasks/{task_id}')).json()).done === 1500")
    await page.evaluate(write, 2)
    page.on("dialog", lambda dialog: dialog.accept())
    await page.goto("about:blank")
    await page.goto(f"{own_platform.url}/#task={task_id}")
    # It goes on by itself, finds another file, and says so; "Send the file again" makes a task of its own.
    await expect(page.locator("#task-problem")).to_contain_text("not the beginning of this file")
    await page.get_by_role("button", name="Send the file again").click()
    await expect(page.locator("#task-notice")).to_contain_text("This file differs")
    assert await completed_sums(page, "kept.bin", 1) == filled(2)
    assert own_platform.task(task_id)["done"] == 1500


async def test_send_again_with_another_file_of_the_same_face_is_a_new_task(page: Page, own_platform: Platform) -> None:
    own_platform.start_worker()
    own_platform.start_api()

    def again(number: int) -> FilePayload:
        return {"name": "again.bin", "mimeType": "application/octet-stream", "buffer": bytes([number]) * 4000}

    task = httpx.post(
        f"{own_platform.url}/uploads",
        headers=VERSION
        | {"Upload-Length": "4000", "Upload-Metadata": metadata(filename="again.bin", processor="checksum")},
    )
    task_id, url = task.headers["headway-task-id"], f"{own_platform.url}{task.headers['location']}"
    assert send(url, 0, bytes([1]) * 1500).status_code == 204
    await page.goto(f"{own_platform.url}/#task={task_id}")
    button = page.get_by_role("button", name="Send the file again")
    await expect(button).to_be_visible()
    async with page.expect_file_chooser() as chooser:
        await button.click()
    await (await chooser.value).set_files(again(2))
    await expect(page.locator("#task-notice")).to_contain_text("This file differs")
    assert await completed_sums(page, "again.bin", 1) == filled(2)
    assert offset_of(url) == 1500
    await page.goto(f"{own_platform.url}/#task={task_id}")
    await expect(button).to_be_visible()
    async with page.expect_file_chooser() as chooser:
        await button.click()
    await (await chooser.value).set_files(again(1))
    assert await completed_sums(page, "again.bin", 2) == filled(1, 2)


@pytest.fixture
def plain_name(browser_arguments: list[str]) -> str:
    """A name that is no loopback one to the browser, so that plain http is no secure context there."""
    browser_arguments.append("--host-resolver-rules=MAP headway.example 127.0.0.1")
    return "headway.example"


async def test_a_page_over_plain_http_sends_and_goes_on_without_web_cryptography(
    plain_name: str, context: BrowserContext, own_platform: Platform
) -> None:
    page = await context.new_page()  # the browser's console says that such a page is not to be trusted
    own_platform.start_worker()
    own_platform.start_api(HEADWAY_INSECURE="1", HEADWAY_CORS_ORIGINS="")
    port = own_platform.url.rpartition(":")[2]
    await page.goto(f"http://{plain_name}:{port}/")
    assert await page.evaluate("[isSecureContext, crypto.subtle === undefined]") == [False, True]
    await expect(page.get_by_label("Processor", exact=True)).to_be_enabled()
    await page.evaluate(CHOOSE, {"many": 5, "seed": 0})
    await started(page)
    assert await completed_sums(page, "report.bin", 5) == filled(*range(5))
    # Cut in the middle; another file of the same face is a new task, and the same one goes on.
    found = await page.evaluate(
        with_tools("""
          const first = random(3000);
          const task = await announce(face(first), work);
          const real = fetch;
          globalThis.fetch = async (url, init) => {
            if (init?.method !== "PATCH") return real(url, init);
            await real(url, { ...init, signal: undefined, body: init.body.slice(0, 1000) });
            stop.abort();
            throw new TypeError("cut");
          };
          const stop = new AbortController();
          await send(task, face(first), { signal: stop.signal }).catch(() => {});
          globalThis.fetch = real;
          const other = await finish(face(random(3000)));
          const same = await finish(face(first));
          const wentOn = same.task.task_id === task.task_id;
          return [other.found, other.another, other.task.status, same.found, wentOn, same.task.status];
        """)
    )
    assert found == [False, 1, "completed", True, True, "completed"]
