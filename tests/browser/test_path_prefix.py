"""The page behind a proxy that takes a path prefix off: somebody signs in, submits a file, sees it end, and reloads;
beside another platform under the root of the same origin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.hands import choose, expect_status, send_as, text_file
from tests.processes import Platform, RedisServer, free_port
from tests.proxies import missing, running

pytestmark = pytest.mark.browser

KEY = "a-key-of-sixteen-or-more"
PREFIX = "/apps/headway"
NGINX = """
  server {{
    listen 127.0.0.1:{port};
    location {prefix}/ {{
      proxy_pass {under}/;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-Prefix {prefix};
    }}
    location / {{ proxy_pass {root}; proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Prefix ""; }}
  }}
"""


@pytest.fixture
def origin(redis_server: RedisServer, tmp_path: Path) -> Iterator[str]:
    """Two platforms: one under the prefix, which asks for a key, and one beside it."""
    if why := missing("nginx"):
        pytest.skip(why)
    port = free_port()
    keys = f'{{"ada": "{KEY}"}}'
    with (
        Platform(tmp_path / "under", redis_server.fresh_url(), HEADWAY_API_KEYS=keys) as under,
        Platform(tmp_path / "root", redis_server.fresh_url()) as root,
    ):
        under.start_worker(wait=False)
        root.start_api(wait=False)
        under.start_api()
        config = NGINX.format(port=port, prefix=PREFIX, under=under.url, root=root.url)
        with running("nginx", tmp_path / "nginx", config, f"http://127.0.0.1:{port}") as url:
            yield url


async def test_the_page_does_its_whole_job_under_a_prefix(page: Page, context: BrowserContext, origin: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    beside = await context.new_page()
    await beside.goto(origin)
    await expect(beside.locator("#no-tasks")).to_contain_text("Nothing here yet")
    await page.goto(origin + PREFIX)
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await page.get_by_label("Key").fill(KEY)
    await page.keyboard.press("Enter")
    await expect(page.locator("#who")).to_have_text("ada")
    (cookie,) = await context.cookies(origin + PREFIX)
    assert cookie["path"] == PREFIX

    await choose(page, text_file("mine.txt"))
    await send_as(page, "compress")
    await expect_status(page, "Completed")
    async with page.expect_download() as download:
        await page.get_by_role("link", name=re.compile(r"mine\.txt\.")).click()
    assert (await download.value).url.startswith(f"{origin}{PREFIX}/tasks/")
    await page.reload()
    await expect_status(page, "Completed")
    await page.get_by_role("link", name="All tasks").click()
    await expect(page.locator(".task-row")).to_contain_text("mine.txt")
    # Tabs share a stream, but not with those of another platform on the same origin.
    await expect(beside.locator("#no-tasks")).to_contain_text("Nothing here yet")
    await expect(beside.locator(".task-row")).to_have_count(0)
    assert {path for path in asked if not path.startswith(f"{PREFIX}/")} <= {PREFIX}
