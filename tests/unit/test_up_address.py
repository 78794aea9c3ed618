"""Where `headway up` says that the page is: as this machine's browser reaches it, under the prefix if there is one."""

from __future__ import annotations

import os

import pytest

from headway.cli.embedded import choose
from headway.cli.up import Plan
from headway.shared.settings import Settings


@pytest.mark.parametrize(
    ("host", "prefix", "address"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:8000"),
        ("0.0.0.0", "headway/", "http://127.0.0.1:8000/headway"),
        ("::1", "/a/b", "http://[::1]:8000/a/b"),
    ],
)
def test_the_address_is_the_pages(host: str, prefix: str, address: str) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:6379/0", root_path=prefix)
    assert Plan(settings, host, 8000, choose(settings, os.environ), None).address == address
