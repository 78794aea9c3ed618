"""A line that says nothing is not believed: one that falls silent, a proxy that holds every stream back, a tab that was
frozen and leads. What is shown is asked for, and the page says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.hands import choose, expect_status, send_as, text_file
from tests.browser.test_streams import ENDED, HEARD, WATCH, cancel, rehearsal
from tests.processes import Platform, free_port
from tests.proxies import missing, running
from tests.stalling_line import StallingLine

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

#: Says nothing of buffering: what lighttpd does unless told otherwise.
LIGHTTPD = 'proxy.server = ("" => (("host" => "127.0.0.1", "port" => {port})))'


@pytest.fixture
def beating(own_platform: Platform) -> Platform:
    """Its heartbeat is short, so silence is soon too long."""
    own_platform.start_worker()
    own_platform.start_api(HEADWAY_HEARTBEAT_SECONDS="0.4")
    return own_platform


@pytest.fixture
async def line(beating: Platform) -> AsyncIterator[StallingLine]:
    async with StallingLine(beating.url) as line:
        yield line


@pytest.mark.parametrize("count", [1, 3])
async def test_a_watch_on_a_line_that_fell_silent_is_told_the_end(
    page: Page, beating: Platform, line: StallingLine, count: int
) -> None:
    """One has a stream of its own, several share one."""
    ids = [rehearsal(beating, 1, 3000)["task_id"] for _ in range(count)]
    await page.goto(f"{line.url}/healthz")
    await page.evaluate(WATCH, [{"task_id": task_id} for task_id in ids])
    await page.wait_for_function(HEARD, arg=count)
    line.fall_silent()
    await asyncio.to_thread(cancel, beating, *ids)
    await page.wait_for_function(ENDED, arg=count)
    assert await page.evaluate("ends.flat()") == ["cancelled"] * count


async def test_the_page_on_a_line_that_fell_silent_shows_what_is_true(
    page: Page, beating: Platform, line: StallingLine
) -> None:
    await page.goto(line.url)
    await expect(page.locator("#system")).to_contain_text("1 worker")
    line.fall_silent()
    task_id = (await asyncio.to_thread(rehearsal, beating, 1, 0))["task_id"]
    await page.goto(f"{line.url}/#task={task_id}")
    await expect(page.locator("#task")).to_contain_text("100 %")
    await expect(page.locator("#connection")).to_be_hidden()  # the new stream speaks


async def test_behind_a_proxy_that_holds_streams_back_the_page_asks_and_says_so(
    page: Page, beating: Platform, tmp_path: Path
) -> None:
    if why := missing("lighttpd"):
        pytest.skip(why)
    port = free_port()
    inside = LIGHTTPD.format(port=httpx.URL(beating.url).port)
    with running("lighttpd", tmp_path / "lighttpd", inside, f"http://127.0.0.1:{port}") as url:
        task_id = (await asyncio.to_thread(rehearsal, beating, 1, 3000))["task_id"]
        await page.goto(f"{url}/#task={task_id}")
        await expect(page.locator("#task")).to_contain_text("0 %")
        await expect(page.locator("#connection")).to_contain_text("asked every few seconds")
        await asyncio.to_thread(cancel, beating, task_id)
        await expect(page.locator("#task")).to_contain_text("Cancelled", ignore_case=True)
        await page.evaluate(WATCH, [{"task_id": (await asyncio.to_thread(rehearsal, beating, 1, 0))["task_id"]}])
        await page.wait_for_function(ENDED, arg=1)


async def test_an_upload_that_is_sent_elsewhere_is_not_called_idle_behind_such_a_proxy(
    page: Page, beating: Platform, tmp_path: Path
) -> None:
    """Its file has long arrived: what the page says of it is asked at that moment."""
    if why := missing("lighttpd"):
        pytest.skip(why)
    port = free_port()
    inside = LIGHTTPD.format(port=httpx.URL(beating.url).port)
    body = {"processor": "checksum", "filename": "a.bin", "size_bytes": 3}
    task = httpx.post(f"{beating.url}/tasks", json=body).json()
    with running("lighttpd", tmp_path / "lighttpd", inside, f"http://127.0.0.1:{port}") as url:
        await page.goto(f"{url}/#task={task['task_id']}")
        await expect(page.locator("#task")).to_contain_text("a.bin")
        httpx.put(beating.url + task["links"]["upload"], content=b"abc").raise_for_status()
        await expect(page.locator("#task")).to_contain_text("100 %")
        assert "is not sending it" not in await page.locator("#task").inner_text()


async def test_a_tab_that_is_looked_at_takes_over_from_a_frozen_one_that_leads(
    context: BrowserContext, page: Page, beating: Platform
) -> None:
    leading = await context.new_page()
    await leading.goto(beating.url)
    await expect(leading.locator("#system")).to_contain_text("1 worker")
    await page.goto(beating.url)
    await expect(page.locator("#system")).to_contain_text("1 worker")
    freezer = await context.new_cdp_session(leading)
    await freezer.send("Page.setWebLifecycleState", {"state": "frozen"})
    task_id = (await asyncio.to_thread(rehearsal, beating, 1, 0))["task_id"]
    await expect(page.locator(f'a[href*="{task_id}"]').first).to_be_visible()
    await freezer.send("Page.setWebLifecycleState", {"state": "active"})
    again = (await asyncio.to_thread(rehearsal, beating, 1, 0))["task_id"]
    for tab in (page, leading):
        await expect(tab.locator(f'a[href*="{again}"]').first).to_be_visible()


async def test_what_the_browser_has_sent_is_shown_beside_what_has_arrived(page: Page, line: StallingLine) -> None:
    """Through a proxy that collects a body before it sends it on."""
    line.passes_uploads.clear()
    await page.goto(line.url)
    await choose(page, text_file("a.txt", "x" * 5_000_000))
    await send_as(page, "checksum")
    await expect(page.locator("#task-message")).to_contain_text("this browser has sent")
    line.passes_uploads.set()
    await expect_status(page, "Completed")
    await expect(page.locator("#task-message")).not_to_contain_text("this browser has sent")
