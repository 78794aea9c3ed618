"""The page at `/`, driven in a real Chromium: what a person does, and what a person then sees."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from playwright.async_api import Browser, Page, Route, expect

from tests.browser.hands import CSV, DROP, expect_status, percent_from, start_rehearsal
from tests.processes import Platform

pytestmark = pytest.mark.browser

#: Writes down every value the bar has had.
RECORD_BAR = """() => {
  const bar = document.querySelector("#bar");
  window.seen = [];
  new MutationObserver(() => window.seen.push(Number(bar.getAttribute("aria-valuenow"))))
    .observe(bar, { attributes: true, attributeFilter: ["aria-valuenow"] });
}"""


async def test_a_dropped_file_is_watched_to_its_result(page: Page, base_url: str) -> None:
    await page.goto(base_url)
    await expect(page.get_by_label("Processor", exact=True)).to_have_value("checksum")
    await page.evaluate(RECORD_BAR)
    await page.evaluate(DROP, ["trips.csv", CSV])
    await expect(page.get_by_label("Processor", exact=True)).to_have_value("table-profile")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect_status(page, "Completed")
    await expect(page.locator("#bar")).to_have_attribute("aria-valuenow", "100")
    await expect(page.get_by_role("status")).to_have_text("trips.csv: Completed")

    city = page.locator(".column").filter(has_text="city")
    await expect(city).to_contain_text("text")
    await expect(city).to_contain_text("400 (33.3 %)")  # rows without one
    await expect(city.locator(".bars li").filter(has_text="Hamburg").locator(".share")).to_have_attribute(
        "style", re.compile("33.3")
    )
    await expect(page.get_by_text("1,200", exact=True)).to_be_visible()
    async with page.expect_download() as download:
        await page.get_by_role("link", name="profile.json").click()
    assert (await download.value).suggested_filename == "profile.json"

    seen = await page.evaluate("() => window.seen")
    assert seen == sorted(seen), "the bar fell"


DRAW_TWICE = """async () => {
  const { TaskView } = await import("/static/task-view.js");
  const [{ task_id }] = (await (await fetch("/tasks?status=completed")).json()).tasks;
  const task = async () => (await fetch(`/tasks/${task_id}`)).json();
  const view = new TaskView();
  view.draw(await task(), {});
  const link = document.querySelector("#result-room a");
  view.draw(await task(), {});
  return link !== null && link.isConnected;
}"""


async def test_a_result_that_comes_again_takes_no_link_from_under_a_click(page: Page, base_url: str) -> None:
    await page.goto(base_url)
    await expect(page.get_by_label("Processor", exact=True)).to_have_value("checksum")
    await page.evaluate(DROP, ["trips.csv", CSV])
    await expect(page.get_by_label("Processor", exact=True)).to_have_value("table-profile")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect_status(page, "Completed")
    assert await page.evaluate(DRAW_TWICE)


async def test_everything_is_done_by_keyboard(page: Page, base_url: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    # Listened for from the start: the browser needs a moment until it hands its file dialogs over.
    page.on("filechooser", lambda chooser: chooser.set_files(file))
    await page.goto(base_url)
    await expect(page.get_by_label("Processor", exact=True)).to_have_value("checksum")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await expect(page.locator("#file")).to_be_focused()
    await page.keyboard.press("Space")
    await expect(page.locator("#file-name")).to_contain_text("notes.txt")
    await page.get_by_label("Processor", exact=True).focus()
    await page.keyboard.type("checksum")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Start", exact=True)).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="notes.txt")).to_be_focused()
    await expect_status(page, "Completed")
    await expect(page.get_by_text("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")).to_be_visible()


async def test_a_reload_in_the_middle_picks_the_task_up_where_it_is(page: Page, base_url: str) -> None:
    await start_rehearsal(page, base_url, steps=10, step_seconds=0.4)
    bar = page.locator("#bar")
    await expect(bar).to_have_attribute("aria-valuenow", percent_from(30))
    before = int(await bar.get_attribute("aria-valuenow") or 0)
    await page.reload()
    await expect_status(page, "Processing")
    assert int(await bar.get_attribute("aria-valuenow") or 0) >= before
    await expect_status(page, "Completed")
    await page.get_by_role("link", name="All tasks").click()
    await expect(page.locator(".task-row").filter(has_text="rehearsal").first).to_contain_text("Completed")


async def test_a_link_to_a_task_shows_it_in_another_browser(page: Page, browser: Browser, base_url: str) -> None:
    await start_rehearsal(page, base_url, steps=3, step_seconds=0.1)
    await expect_status(page, "Completed")
    elsewhere = await browser.new_page()
    await elsewhere.goto(page.url)
    await expect_status(elsewhere, "Completed")


async def test_a_reload_during_the_upload_says_so_and_takes_the_file_again(page: Page, base_url: str) -> None:
    file = {"name": "big.bin", "mimeType": "application/octet-stream", "buffer": b"0123456789" * 100_000}
    page.on("dialog", lambda dialog: dialog.accept())  # "leave this page?"
    page.on("filechooser", lambda chooser: chooser.set_files(file))  # type: ignore[call-overload]
    line = await page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
    await page.goto(base_url)
    await page.locator("#file").set_input_files(file)  # type: ignore[arg-type]
    await line.send("Network.enable")
    await line.send("Network.emulateNetworkConditions", slow)
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect_status(page, "Uploading")
    await expect(page.locator("#fact-done")).to_contain_text("of 1.0 MB")
    await page.reload()
    await expect_status(page, "Uploading")
    await line.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    address = page.url
    await page.get_by_role("button", name="Send the file again").click()
    await expect_status(page, "Completed")
    assert page.url == address, "it is the same task"


async def test_a_failing_rehearsal_shows_its_error_and_can_be_tried_again(page: Page, base_url: str) -> None:
    await start_rehearsal(page, base_url, steps=4, step_seconds=0.05, fail_at=2)
    await expect_status(page, "Failed")
    await expect(page.get_by_role("alert")).to_contain_text("Step 2 failed, as it was told to.")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#fact-attempt")).to_have_text("2")
    await expect_status(page, "Failed")


async def test_a_task_is_cancelled_by_its_button(page: Page, base_url: str) -> None:
    await start_rehearsal(page, base_url, steps=100, step_seconds=1)
    await expect_status(page, "Processing")
    await page.get_by_role("button", name="Cancel").click()
    await expect_status(page, "Cancelled")
    await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    await expect(page.get_by_role("button", name="Try again")).to_be_visible()


async def test_what_the_server_finds_wrong_is_said_where_it_is(page: Page, base_url: str) -> None:
    await page.goto(base_url)
    await page.evaluate(DROP, ["trips.csv", CSV])
    delimiter = page.get_by_label("Delimiter")
    await delimiter.fill("two")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(delimiter).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("#option-delimiter-complaint")).to_contain_text("match")
    await expect(page.get_by_role("alert")).to_contain_text("table-profile")
    await delimiter.fill(",")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect_status(page, "Completed")


async def test_results_are_shown_as_pictures_and_as_a_folder(page: Page, platform: Platform) -> None:
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (300, 200), "teal").save(picture, "PNG")
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("site/index.html", "site/img/logo.svg", "notes.txt"):
            file.writestr(name, "hello")
    task = platform.submit("image-thumbnails", picture.getvalue(), filename="sea.png")
    await page.goto(f"{platform.url}/#task={task['task_id']}")
    shown = page.get_by_role("img", name="sea-128.webp")
    await expect(page.locator(".pictures")).to_contain_text("128 × 85")
    assert await shown.evaluate("(image) => [image.complete, image.naturalWidth]") == [True, 128]

    task = platform.submit("extract", archive.getvalue(), filename="site.zip")
    await page.goto(f"{platform.url}/#task={task['task_id']}")
    await expect(page.locator(".folder summary").first).to_contain_text("2 files")
    leaf = page.locator(".leaf").filter(has_text="notes.txt")
    async with page.expect_download() as download:
        await leaf.get_by_role("link", name="notes.txt").click()
    assert (await download.value).suggested_filename == "notes.txt"
    await expect(leaf.locator(".transfer")).to_have_text("sent")


async def test_files_that_were_packed_together_show_their_own_sizes_and_one_download(
    page: Page, platform: Platform
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(1, 601):
            file.writestr(f"part-{number % 2}/{number:03d}.txt", "x" * number)
    task = platform.submit("extract", archive.getvalue(), filename="many.zip")
    await page.goto(f"{platform.url}/#task={task['task_id']}")
    await expect(page.get_by_role("heading", name="Files (600) in files.zip")).to_be_visible()
    for part in ("part-0/", "part-1/"):
        await page.locator(".folder summary", has_text=part).click()
    leaves = await page.locator(".leaf").all_inner_texts()
    [packed] = platform.task(task["task_id"])["result"]["files"]
    listing = platform.task(task["task_id"])["result"]["summary"]["listing"]
    assert {entry["name"].rpartition("/")[2]: entry["size_bytes"] for entry in listing} == {
        f"{number:03d}.txt": number for number in range(1, 601)
    }
    shown = [leaf.split() for leaf in leaves]
    sizes = {f"{number:03d}.txt": f"{number} byte{'s' * (number > 1)}" for number in range(1, 601)}
    assert {name: " ".join(size) for name, *size in shown} == sizes
    await expect(page.locator(".leaf a")).to_have_count(0)
    async with page.expect_download() as download:
        await page.locator("#result-room .files").get_by_role("link", name="files.zip").click()
    assert (await download.value).suggested_filename == "files.zip"
    assert (await (await download.value).path()).stat().st_size == packed["size_bytes"]


async def test_a_file_that_is_no_csv_is_refused_in_the_processors_own_words(page: Page, base_url: str) -> None:
    await page.goto(base_url)
    picture = {"name": "not.csv", "mimeType": "text/csv", "buffer": b"\x89PNG\r\n\x1a\n" + bytes(100)}
    await page.locator("#file").set_input_files(picture)  # type: ignore[arg-type]
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect_status(page, "Failed")
    await expect(page.get_by_role("alert")).to_contain_text("image/png")


async def test_a_strangers_file_name_stays_text(page: Page, base_url: str) -> None:
    name = '<img src=x onerror="document.title=1">.csv'
    await page.goto(base_url)
    await page.evaluate(DROP, [name, "<b>bold</b>,n\n<i>x</i>,1\n<i>y</i>,2\n"])
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect_status(page, "Completed")
    await expect(page.get_by_role("heading", name=name)).to_be_visible()
    await expect(page.get_by_role("heading", name="<b>bold</b>")).to_be_visible()
    assert await page.locator("main img, main b, main i").count() == 0


@pytest.mark.parametrize("status", [502, 503])
async def test_a_stream_that_ended_for_good_is_opened_again(page: Page, base_url: str, status: int) -> None:
    refused: list[str] = []

    async def refuse_twice(route: Route) -> None:
        if len(refused) < 2:
            refused.append(route.request.url)
            await route.fulfill(status=status, content_type="text/html", body="<h1>Bad gateway</h1>")
        else:
            await route.continue_()

    await page.route(f"{base_url}/events**", refuse_twice)
    await start_rehearsal(page, base_url, steps=6, step_seconds=0.3)
    await expect_status(page, "Completed")
    assert len(refused) == 2
    await expect(page.locator("#connection")).to_be_hidden()


async def test_an_api_that_is_killed_and_comes_back_is_only_a_pause(page: Page, own_platform: Platform) -> None:
    own_platform.start_worker()
    api = own_platform.start_api()
    await start_rehearsal(page, own_platform.url, steps=8, step_seconds=0.5)
    await expect(page.locator("#bar")).to_have_attribute("aria-valuenow", percent_from(10))
    api.kill()
    await expect(page.locator("#connection")).to_be_visible()
    own_platform.start_api(port=int(own_platform.url.rpartition(":")[2]))
    await expect_status(page, "Completed")
    await expect(page.locator("#connection")).to_be_hidden()


async def test_a_task_that_is_not_there_is_gone(page: Page, base_url: str) -> None:
    await page.goto(f"{base_url}/#task={'0' * 32}")
    await expect_status(page, "Gone")
    await expect(page.get_by_role("alert")).to_contain_text("There is no such task")


async def test_nothing_hangs_over_the_edge_of_a_phone(page: Page, base_url: str) -> None:
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.goto(base_url)
    await page.evaluate(DROP, [f"{'long' * 50}.csv", CSV])
    assert await page.evaluate("() => document.documentElement.scrollWidth") == 390
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(page.locator(".column").first).to_be_visible()
    assert await page.evaluate("() => document.documentElement.scrollWidth") == 390
