"""axe-core finds nothing on the page, whatever it shows. From npm, into a folder of the cache; skipped without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.browser.hands import CSV, DROP, choose, expect_status, send_as, start_rehearsal, text_file
from tests.npm import installed
from tests.processes import Platform

pytestmark = pytest.mark.browser

VIOLATIONS = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => [id, html, failureSummary]));
}"""

COLOURS = VIOLATIONS.replace('"violations"]', '"violations"], runOnly: ["color-contrast"]')


@pytest.fixture(scope="session")
def axe() -> str:
    folder = installed(Path(__file__).parent / "axe")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


async def test_axe_finds_nothing_wrong_in_any_state(page: Page, own_platform: Platform, axe: str) -> None:
    async def look() -> None:
        await page.evaluate(axe)
        assert await page.evaluate(VIOLATIONS) == []
        await page.emulate_media(color_scheme="dark")
        assert await page.evaluate(COLOURS) == []
        await page.emulate_media(color_scheme="light")

    own_platform.start_worker()
    own_platform.start_api()
    own_platform.start_api(HEADWAY_API_KEYS='{"ada": "a-key-of-sixteen-or-more"}')
    await page.emulate_media(reduced_motion="reduce")
    await page.goto(own_platform.urls[1])
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await look()

    await page.goto(own_platform.url)
    await page.evaluate(DROP, ["trips.csv", CSV])
    await page.get_by_label("Delimiter").fill("two")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(page.get_by_role("alert")).to_contain_text("table-profile")
    await look()  # a form with complaints

    await page.get_by_label("Delimiter").fill(",")
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect_status(page, "Completed")
    await page.get_by_label("Note", exact=True).fill("Done.")
    await page.keyboard.press("Enter")
    await expect(page.locator("#note-list li")).to_have_count(1)
    await look()  # a profile, and notes

    await start_rehearsal(page, own_platform.url, steps=2, step_seconds=0, fail_at=2)
    await expect_status(page, "Failed")
    await look()
    await page.get_by_role("link", name="All tasks").click()
    await choose(page, *(text_file(f"{number}.txt") for number in range(3)))
    await send_as(page, "checksum")
    await expect(page.locator(".rollup")).to_contain_text("3 completed")
    await start_rehearsal(page, own_platform.url, steps=100, step_seconds=1)
    await expect_status(page, "Processing")
    await look()  # while it runs
    await page.get_by_role("link", name="All tasks").click()
    await expect(page.locator(".task-row:visible")).to_have_count(6)
    await look()  # the list
