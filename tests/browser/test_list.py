"""The list of all tasks: many files at once, many tabs at once, and what other tabs and other people do meanwhile."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from playwright.async_api import BrowserContext, Page, Route, expect

from tests.browser.hands import choose, expect_status, percent_from, send_as, start_rehearsal, text_file
from tests.processes import Platform, RedisServer

pytestmark = pytest.mark.browser

#: Tabs of one browser that hold a stream: one, however many there are.
LEADERS = """async () => {
  const { held } = await navigator.locks.query();
  return held.filter(({ name }) => name.startsWith("headway-feed")).length;
}"""

#: Gives the page a file the way a drag does, and with it a handle that outlives a reload.
DROP_KEPT = """async ([name, text]) => {
  const folder = await navigator.storage.getDirectory();
  const handle = await folder.getFileHandle(name, { create: true });
  const writable = await handle.createWritable();
  await writable.write(text);
  await writable.close();
  DataTransferItem.prototype.getAsFileSystemHandle = async () => handle;
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(await handle.getFile());
  window.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""

SLOW = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}


async def test_many_files_are_one_batch_with_one_line(page: Page, base_url: str) -> None:
    await page.goto(base_url)
    await choose(page, *(text_file(f"part-{number:02d}.txt") for number in range(30)))
    await expect(page.locator("#file-name")).to_have_text("30 files")
    await send_as(page, "checksum")
    batch = page.locator(".batch").first
    await expect(batch.locator(".rollup")).to_contain_text("30 tasks · 30 completed")
    await expect(batch.get_by_role("progressbar").first).to_have_attribute("aria-valuenow", "100")
    await expect(batch.locator(".task-row").first).to_be_hidden()
    await batch.get_by_role("button", name="Show 30").click()
    await expect(batch.locator(".task-row:visible")).to_have_count(30)

    await page.get_by_label("Filter by name").fill("part-07")
    await expect(page.locator(".task-row:visible")).to_have_count(1)
    await page.get_by_label("Status", exact=True).select_option("failed")
    await expect(page.locator("#no-tasks")).to_have_text("None of the tasks fits the filter.")
    await expect(page.locator("#system")).to_contain_text("1 worker")


async def test_cancelling_all_of_a_batch_cancels_also_what_the_page_has_not_loaded(
    page: Page, platform: Platform
) -> None:
    with httpx.Client(base_url=platform.url) as client:
        made = {"processor": "rehearsal", "options": {"steps": 100, "step_seconds": 1}, "batch_id": "many-of-a-kind"}
        for _ in range(150):
            client.post("/tasks", json=made)
    await page.goto(platform.url)
    batch = page.locator(".batch", has_text="many-of-a-kind")
    await expect(batch.get_by_role("button", name="Show 100")).to_be_visible()
    await batch.get_by_role("button", name="Cancel all", exact=True).click()
    await batch.get_by_role("button", name="Cancel all of them?").click()
    await expect(batch.locator(".rollup")).to_contain_text("150 cancelled · cancelled 150 of 150")
    counts = httpx.get(f"{platform.url}/batches/many-of-a-kind").json()["counts"]
    assert counts["cancelled"] == 150


async def test_a_batch_that_is_cancelled_while_its_files_are_taken_takes_no_more(page: Page, base_url: str) -> None:
    asked = 0
    pressed = asyncio.Event()

    async def hold_after_some(route: Route) -> None:
        nonlocal asked
        asked += 1
        if asked > 20:
            await pressed.wait()
        await route.continue_()

    await page.goto(base_url)
    await page.route("**/uploads", hold_after_some)
    await choose(page, *(text_file(f"given-up-{number:02d}.txt") for number in range(60)))
    await send_as(page, "checksum")
    batch = page.locator(".batch", has=page.get_by_text("given-up-")).first
    await batch.get_by_role("button", name="Cancel all", exact=True).click()
    await batch.get_by_role("button", name="Cancel all of them?").click()
    pressed.set()
    await expect(batch.locator(".rollup")).to_contain_text(re.compile(r"cancelled \d+ of \d+"))
    answer = re.search(r"cancelled \d+ of (\d+)", await batch.locator(".rollup").inner_text())
    assert answer is not None
    assert int(answer[1]) == asked < 25


async def test_what_others_start_and_delete_shows_in_every_tab(
    page: Page, context: BrowserContext, platform: Platform
) -> None:
    other = await context.new_page()
    for tab in (page, other):
        await tab.goto(platform.url)
    task = platform.submit("checksum", b"hello", filename="from-elsewhere.txt")
    rows = [tab.locator(f".task-row:has(#row-{task['task_id']})") for tab in (page, other)]
    for row in rows:
        await expect(row).to_contain_text("Completed")
    await rows[0].get_by_role("button", name="Delete").click()
    await expect(rows[0]).to_contain_text("Delete for good?")
    await rows[0].get_by_role("button", name="Delete for good?").click()
    for row in rows:
        await expect(row).to_have_count(0)
    task = platform.submit("checksum", b"hello", filename="deleted-elsewhere.txt")
    rows = [tab.locator(f".task-row:has(#row-{task['task_id']})") for tab in (page, other)]
    for row in rows:
        await expect(row).to_contain_text("Completed")
    answer = await page.request.delete(f"{platform.url}/tasks/{task['task_id']}")
    assert answer.status == 204
    for row in rows:
        await expect(row).to_have_count(0)


async def test_seven_tabs_share_one_stream_and_outlive_the_one_that_holds_it(
    context: BrowserContext, platform: Platform
) -> None:
    tabs = [await context.new_page() for _ in range(7)]
    for tab in tabs:
        await tab.goto(platform.url)
    for name in ("while-all-are-open.txt", "when-the-first-is-gone.txt"):
        task = platform.submit("checksum", b"hello", filename=name)
        for tab in tabs:
            await expect(tab.locator(f".task-row:has(#row-{task['task_id']})")).to_contain_text("Completed")
        assert await tabs[0].evaluate(LEADERS) == 1
        await tabs.pop(0).close()


async def test_notes_go_between_tabs_and_stay(page: Page, context: BrowserContext, base_url: str) -> None:
    await start_rehearsal(page, base_url, steps=100, step_seconds=1)
    await expect_status(page, "Processing")
    other = await context.new_page()
    await other.goto(page.url)
    await page.get_by_label("Your name").fill("Ada")
    await page.get_by_label("Note", exact=True).fill("<b>Is it stuck?</b>")
    await page.get_by_role("button", name="Send", exact=True).click()
    await expect(other.locator("#note-list")).to_contain_text("<b>Is it stuck?</b>")
    await other.get_by_label("Note", exact=True).fill("No, slow.")
    await other.keyboard.press("Enter")
    await expect(page.locator("#note-list li")).to_have_count(2)
    await page.reload()
    await expect(page.locator("#note-list li")).to_have_count(2)
    await expect(page.locator("#note-list li").first).to_contain_text("Ada")
    await page.get_by_role("button", name="Cancel").click()
    await expect_status(page, "Cancelled")
    await expect_status(other, "Cancelled")
    await other.get_by_label("Note", exact=True).fill("A pity.")
    await other.keyboard.press("Enter")
    await expect(page.locator("#note-list li")).to_have_count(3)
    await page.reload()
    await expect(page.locator("#note-list li")).to_have_count(3)


async def test_rows_cancel_and_try_again(page: Page, base_url: str) -> None:
    await start_rehearsal(page, base_url, steps=100, step_seconds=1)
    await page.wait_for_url(re.compile("#task="))
    task_id = page.url.rpartition("=")[2]
    await page.get_by_role("link", name="All tasks").click()
    row = page.locator(f".task-row:has(#row-{task_id})")
    for attempt in (re.compile(r"step \d+ of 100"), "attempt 2"):
        await expect(row.locator(".now")).to_contain_text(attempt)
        await expect(page.locator("#system")).to_contain_text(re.compile("[1-9] running"))
        await row.get_by_role("button", name="Cancel").click()
        await expect(row.locator(".badge")).to_have_text("Cancelled")
        if attempt != "attempt 2":
            await row.get_by_role("button", name="Try again").click()


async def test_an_upload_goes_on_after_a_cut_line(page: Page, base_url: str) -> None:
    cut: list[str] = []

    async def cut_twice(route: Route) -> None:
        if route.request.method == "PATCH" and len(cut) < 2:
            cut.append(route.request.url)
            await route.abort("connectionreset")
        else:
            await route.continue_()

    await page.route("**/uploads/*", cut_twice)
    await page.goto(base_url)
    await choose(page, text_file("cut.txt"))
    await send_as(page, "checksum")
    await expect_status(page, "Completed")
    assert len(cut) == 2


async def test_an_upload_goes_on_by_itself_after_a_reload_where_the_browser_kept_the_file(
    page: Page, base_url: str
) -> None:
    page.on("dialog", lambda dialog: dialog.accept())  # "leave this page?"
    line = await page.context.new_cdp_session(page)
    await page.goto(base_url)
    await page.evaluate(DROP_KEPT, ["kept.txt", "0123456789" * 100_000])
    await expect(page.locator("#file-name")).to_have_text("kept.txt")
    await line.send("Network.enable")
    await line.send("Network.emulateNetworkConditions", SLOW)
    await send_as(page, "checksum")
    await expect_status(page, "Uploading")
    await expect(page.locator("#fact-done")).to_contain_text("of 1.0 MB")
    await line.send("Network.emulateNetworkConditions", {**SLOW, "uploadThroughput": -1})
    address = page.url
    await page.reload()
    await expect_status(page, "Completed")
    assert page.url == address


async def test_a_killed_worker_a_killed_redis_and_a_killed_api_are_only_pauses(
    page: Page, own_platform: Platform, own_redis: RedisServer
) -> None:
    lost = own_platform.start_worker()
    api = own_platform.start_api()
    await start_rehearsal(page, own_platform.url, steps=10, step_seconds=0.5)
    bar = page.locator("#bar")
    await expect(bar).to_have_attribute("aria-valuenow", percent_from(10))
    lost.kill()
    own_platform.start_worker()
    await expect(page.locator("#fact-attempt")).to_have_text("2")
    own_redis.kill()
    api.kill()
    await expect(page.locator("#connection")).to_be_visible()
    own_redis.start()
    own_platform.start_api(port=int(own_platform.url.rpartition(":")[2]))
    await expect_status(page, "Completed")
    await expect(page.locator("#connection")).to_be_hidden()
    await page.get_by_role("link", name="All tasks").click()
    await expect(page.locator(".task-row")).to_contain_text("Completed")


async def test_with_keys_somebody_signs_in_and_out_in_all_tabs(
    page: Page, context: BrowserContext, own_platform: Platform
) -> None:
    own_platform.start_api(HEADWAY_API_KEYS='{"ada": "a-key-of-sixteen-or-more"}')
    other = await context.new_page()
    for tab in (page, other):
        await tab.goto(own_platform.url)
        await expect(tab.get_by_role("heading", name="Sign in")).to_be_visible()
        await expect(tab.get_by_label("Processor", exact=True)).to_be_hidden()
    await page.get_by_label("Key").fill("not-anybodys-key-at-all")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("nobody's key")
    await page.get_by_label("Key").fill("a-key-of-sixteen-or-more")
    await page.keyboard.press("Enter")
    for tab in (page, other):
        await expect(tab.locator("#who")).to_have_text("ada")
        await expect(tab.locator("#no-tasks")).to_contain_text("Nothing here yet")
    await choose(page, text_file("mine.txt"))
    await send_as(page, "checksum")
    await expect_status(page, "Queued")
    await expect(other.locator(".task-row")).to_contain_text("mine.txt")
    await other.get_by_role("button", name="Sign out").click()
    for tab in (page, other):
        await expect(tab.get_by_role("heading", name="Sign in")).to_be_visible()
        await expect(tab.get_by_text("mine.txt")).to_have_count(0)
