"""What people do on the page, for the tests that do it often."""

from __future__ import annotations

import re
from typing import Any

from playwright.async_api import Page, expect

CSV = "city,distance_km,paid_by\n" + "Berlin,1.5,card\nHamburg,2.25,cash\n,3.0,card\n" * 400

#: Gives the page a file the way a drag from the desktop does.
DROP = """([name, text]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], name, { type: "text/csv" }));
  const area = document.querySelector("#drop");
  for (const type of ["dragenter", "dragover", "drop"])
    area.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
}"""


def percent_from(least: int) -> re.Pattern[str]:
    """Matches the bar's value from `least`, a multiple of ten, up to 99."""
    return re.compile(rf"^[{least // 10}-9][0-9]$")


async def start_rehearsal(page: Page, base_url: str, **options: float) -> None:
    await page.goto(base_url)
    await page.get_by_label("Processor", exact=True).select_option("rehearsal")
    for name, value in options.items():
        await page.locator(f"#option-{name}").fill(str(value))
    await page.get_by_role("button", name="Start", exact=True).click()


async def expect_status(page: Page, status: str) -> None:
    await expect(page.locator("#task-status")).to_have_text(status)


async def choose(page: Page, *files: dict[str, Any]) -> None:
    await page.locator("#file").set_input_files(list(files))  # type: ignore[arg-type]


def text_file(name: str, text: str = "hello") -> dict[str, Any]:
    return {"name": name, "mimeType": "text/plain", "buffer": text.encode()}


async def send_as(page: Page, processor: str) -> None:
    await page.get_by_label("Processor", exact=True).select_option(processor)
    await page.get_by_role("button", name="Start", exact=True).click()
