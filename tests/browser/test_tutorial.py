"""The tutorial's own page and JavaScript, unchanged (tutorial.html), served to Chromium on the API's own origin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

pytestmark = pytest.mark.browser

HTML = (Path(__file__).parent / "tutorial.html").read_text(encoding="utf-8")


@pytest.fixture
async def tutorial(page: Page, base_url: str) -> Page:
    address = f"{base_url}/tutorial-page"
    await page.route(address, lambda route: route.fulfill(content_type="text/html", body=HTML))
    await page.goto(address)
    return page


async def test_the_tutorials_page_watches_its_task_to_the_end(tutorial: Page) -> None:
    bar = tutorial.locator("#progressBar")
    await tutorial.get_by_role("button", name="Process File").click()
    await expect(bar).to_have_attribute("style", re.compile(r"width: [1-9]0%"))
    await expect(tutorial.locator("#status")).to_contain_text("Processing step")
    await expect(tutorial.locator("#status")).to_have_text(re.compile("^completed: "), timeout=45_000)
    await expect(bar).to_have_attribute("style", "width: 100%;")


async def test_the_tutorials_numbers_arrive_one_by_one(tutorial: Page) -> None:
    numbers = tutorial.locator("#numbers")
    await tutorial.get_by_role("button", name="Read numbers").click()
    await expect(numbers).to_have_text(re.compile(r"Number: 2\s*$"))  # while the tenth is seconds away
    await expect(numbers).to_contain_text("Number: 10")


async def test_the_tutorials_updates_count_the_seconds(tutorial: Page) -> None:
    updates = tutorial.locator("#updates li")
    await expect(updates.nth(0)).to_have_text("Connection established")
    await expect(updates.nth(1)).to_contain_text('"count": 1')
    await expect(updates.nth(2)).to_contain_text('"timestamp": "')


async def test_the_tutorials_download_is_a_csv_of_a_hundred_thousand_rows(tutorial: Page, tmp_path: Path) -> None:
    async with tutorial.expect_download() as started:
        await tutorial.get_by_role("link", name="Download CSV").click()
    file = tmp_path / "large.csv"
    await (await started.value).save_as(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,name,value"
    assert len(lines) == 100_001
