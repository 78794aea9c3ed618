"""`/docs`: every operation with its schema, and nothing that is loaded from another host."""

from __future__ import annotations

from urllib.parse import urlsplit

from playwright.async_api import Page, expect

from headway.api.routes.description import POLICY
from tests import described


async def test_the_docs_show_every_operation_and_load_nothing_from_elsewhere(page: Page, base_url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = await page.goto(f"{base_url}/docs")
    assert answer is not None
    assert answer.headers["content-security-policy"] == POLICY
    document = described.document()
    # Each is shown under each of its tags.
    operations = sum(len(one.get("tags", [""])) for methods in document["paths"].values() for one in methods.values())
    await expect(page.locator(".opblock")).to_have_count(operations)
    await page.locator("#operations-tasks-get_task .opblock-control-arrow").click()
    await expect(page.locator("#operations-tasks-get_task")).to_contain_text("application/problem+json")
    await page.locator("#operations-tasks-get_task .try-out__btn").click()
    await page.get_by_placeholder("task_id").fill("0" * 32)
    await page.locator("#operations-tasks-get_task .execute").click()
    await expect(page.locator("#operations-tasks-get_task .live-responses-table")).to_contain_text("unknown-task")
    elsewhere = {url for url in asked if not url.startswith((base_url, "data:", "blob:"))}
    assert elsewhere == set()
    assert {"/static/swagger-ui-bundle.js", "/openapi.json"} <= {urlsplit(url).path for url in asked}
