"""Under which path a request is seen: whose word counts, which values are prefixes, passed on or taken off."""

from __future__ import annotations

from typing import Any

import pytest

from headway.api.app import create_app
from headway.api.root_path import RootPath, route_path
from headway.shared.errors import SettingsError
from headway.shared.settings import Settings

PROXY = ("127.0.0.1", 40_000)
STRANGER = ("192.0.2.7", 40_000)
PATHS = ("/", "/tasks", "/tasks/{task_id}", "/static")


def settled(
    path: str,
    *,
    setting: str = "",
    root: str = "",
    told: str | list[str] | None = None,
    client: Any = PROXY,
    peer: Any = None,
) -> tuple[str, str]:
    """`root_path` and the path behind it."""
    headers = [told] if isinstance(told, str) else told or []
    scope: dict[str, Any] = {
        "type": "http",
        "path": path,
        "root_path": root,
        "client": client,
        "headers": [(b"x-forwarded-prefix", value.encode("latin-1")) for value in headers],
    }
    if peer is not None:
        scope["headway.peer"] = peer
    RootPath(setting, PATHS).settle(scope)
    assert scope["path"] == scope["root_path"] + route_path(scope)
    return scope["root_path"], route_path(scope)


@pytest.mark.parametrize("told", [{"setting": "/headway"}, {"told": "/headway"}, {"told": "headway/"}])
def test_a_proxy_may_take_the_prefix_off_or_pass_it_on(told: dict[str, str]) -> None:
    for path in ("/tasks/1/events", "/", "/headwayish"):
        assert settled(path, **told) == ("/headway", path)
    assert settled("/headway/tasks/1/events", **told) == ("/headway", "/tasks/1/events")
    assert settled("/headway/", **told) == ("/headway", "/")
    assert settled("/headway", **told) == ("/headway", "")


def test_a_prefix_may_have_several_parts() -> None:
    assert settled("/a/b/tasks", setting="/a/b") == ("/a/b", "/tasks")
    assert settled("/tasks", told="/a/b/") == ("/a/b", "/tasks")


def test_where_a_prefix_is_set_no_header_counts() -> None:
    assert settled("/tasks", setting="/headway", told="/other") == ("/headway", "/tasks")


def test_a_mount_and_the_servers_own_root_path_stand_behind_a_proxys_prefix() -> None:
    assert settled("/mount/tasks", root="/mount", told="/outer") == ("/outer/mount", "/tasks")
    assert settled("/mount/tasks", root="/mount", told="/mount") == ("/mount", "/tasks")
    assert settled("/tasks", root="/mount", setting="/outer") == ("/outer/mount", "/tasks")  # a path without root_path
    assert settled("/mount/tasks", root="/mount") == ("/mount", "/tasks")


@pytest.mark.parametrize(
    "hostile",
    [
        *(
            "//evil",
            "//evil.example.com/x",
            "/../x",
            "/a/../b",
            "/./a",
            "/a//b",
            "/a\r\nSet-Cookie: x=1",
            "/a\x00",
            "/\x1b",
        ),
        *(
            "https://evil.example.com",
            "/a b",
            "/a;Domain=x",
            "/a,/b",
            "/a?b",
            "/a#b",
            "/%2e%2e",
            "/\\evil",
            "/é",
            "/" + "a" * 64,
        ),
        *("/tasks", "/tasks/x", "/static/"),  # nobody could say what was taken off
        "",
    ],
)
def test_what_is_no_prefix_is_ignored(hostile: str) -> None:
    assert settled("/tasks", told=hostile) == ("", "/tasks")


def test_two_headers_are_ignored() -> None:
    assert settled("/tasks", told=["/a", "/b"]) == ("", "/tasks")


@pytest.mark.parametrize(
    ("client", "peer", "counts"),
    [
        (PROXY, None, True),
        (STRANGER, None, False),
        (STRANGER, PROXY, True),  # X-Forwarded-For with a port
        (PROXY, STRANGER, False),
        (("192.0.2.7", 0), None, True),  # uvicorn's word that a trusted proxy named the client
        (("", 0), None, False),
        (None, None, False),
    ],
)
def test_only_a_trusted_proxys_header_counts(client: Any, peer: Any, counts: bool) -> None:
    assert settled("/tasks", told="/headway", client=client, peer=peer)[0] == ("/headway" if counts else "")


def test_whom_to_trust_is_said_as_for_the_other_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "192.0.2.0/24")
    assert settled("/tasks", told="/headway", client=STRANGER)[0] == "/headway"
    assert settled("/tasks", told="/headway", client=PROXY)[0] == ""


@pytest.mark.parametrize("prefix", ["/tasks", "/static/x", "/docs"])
def test_a_path_of_our_own_is_no_prefix(prefix: str) -> None:
    with pytest.raises(
        SettingsError, match=r"^HEADWAY_ROOT_PATH: /\S+ begins as a path of Headway's own. Example: \S+$"
    ):
        create_app(Settings(root_path=prefix))
