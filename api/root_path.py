"""Under which path this API is seen: behind a proxy's prefix, mounted in another application, or at the root.

Every layer and route reads ASGI's `root_path`, which is settled here, once for a request and in front of all of them:
what the server or a mount says, and before it HEADWAY_ROOT_PATH, or else what a trusted proxy says by
X-Forwarded-Prefix. A proxy may take the prefix off or pass it on. Redis and what the worker writes know no prefix: it
comes before a link when an answer is made (`rooted`), so one platform may be seen under several.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from headway.api.access.forwarded import TrustedProxies
from headway.shared.errors import SettingsError
from headway.shared.settings import clean_root_path
from headway.shared.tasks.representation import rooted

HEADER: Final = b"x-forwarded-prefix"


def route_path(scope: Scope) -> str:
    """The path without the prefix: `/tasks`. Empty for the prefix alone, without a slash behind it. (ASGI's `path` has
    the prefix; a server that leaves it out is understood too.)"""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path[len(root) :] if root and _within(path, root) else path


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


class RootPath:
    """Raises SettingsError for a prefix that would be one of the API's own paths: nobody could say whether a proxy has
    taken it off."""

    def __init__(self, prefix: str, paths: Iterable[str]) -> None:
        self._prefix = prefix
        self._own = frozenset(path.split("/")[1] for path in paths if path.count("/")) - {""}
        self._proxies = TrustedProxies()
        if self._is_own(prefix):
            raise SettingsError(
                f"HEADWAY_ROOT_PATH: {prefix} begins as a path of Headway's own. Example: HEADWAY_ROOT_PATH=/headway"
            )

    def _is_own(self, prefix: str) -> bool:
        return bool(prefix) and prefix.split("/")[1] in self._own

    def settle(self, scope: Scope) -> None:
        """Sets the request's `root_path`, and `path` to it and what is behind it; host and scheme as a trusted proxy
        says them."""
        self._proxies.settle(scope)
        prefix = self._prefix or self._told(scope)
        if not prefix:
            return
        root, rest = scope.get("root_path", "").rstrip("/"), route_path(scope)
        if _within(rest, prefix):
            rest = rest[len(prefix) :]
        if not _within(root, prefix):
            root = prefix + root
        scope["root_path"], scope["path"] = root, root + rest

    def _told(self, scope: Scope) -> str:
        """What a trusted proxy says. Empty where it says nothing, more than one thing, or what is no prefix."""
        given = [value for name, value in scope["headers"] if name == HEADER]
        if len(given) != 1 or not self._proxies.sent(scope):
            return ""
        try:
            prefix = clean_root_path(given[0].decode("latin-1"))
        except ValueError:
            return ""
        return "" if self._is_own(prefix) else prefix


def rooted_event(data: bytes, root: str) -> bytes:
    """The same for the text of an event."""
    return json.dumps(rooted(json.loads(data), root), separators=(",", ":")).encode()


def rooted_answer(answer: Response, root: str) -> Response:
    """The same for an answer with a task, and its Location. Answers are kept without a prefix
    (api/uploads/idempotency.py)."""
    if not root:
        return answer
    headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
    if "location" in headers:
        headers["location"] = root + headers["location"]
    return JSONResponse(rooted(json.loads(bytes(answer.body)), root), answer.status_code, headers)
