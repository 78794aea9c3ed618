"""A URL taken apart by RFC 3986's own expression (appendix B), whose middle may be a list of hosts.

`urllib.parse.urlsplit` is for one host: since the fix of CVE-2025-0938 it refuses brackets in the middle of a list, and
what it raises repeats what stood between them, which may be a password. Whoever asks here checks the parts itself.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_PARTS: Final = re.compile(r"(?s)([^:/?#]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?")


class UrlParts(NamedTuple):
    """As they are written. One that is left out is empty."""

    scheme: str
    #: `USER:PASSWORD`, without the `@`.
    credentials: str
    hosts: str
    path: str
    query: str
    fragment: str


def url_parts(url: str) -> UrlParts:
    """Raises ValueError, whose words do not repeat the URL, where there is no `scheme://`."""
    found = _PARTS.fullmatch(url)
    if found is None:
        raise ValueError("is no URL")
    scheme, authority, path, query, fragment = found.groups(default="")
    credentials, _, hosts = authority.rpartition("@")
    return UrlParts(scheme, credentials, hosts, path, query, fragment)
