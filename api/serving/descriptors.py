"""How much one process can hold open, by its own limit of open files; and how that is shared out.

A connection is a file, and so are Redis's, those that are read and written, and a second one for each download. So the
limits that nobody has set come from here: what is promised to one is not there for all.
"""

from __future__ import annotations

import resource
from functools import cache
from typing import Final

#: Files that the process opens besides connections: Redis (shared/redis/client.py), uploads, downloads. At least so
#: many, and an eighth of all.
RESERVED_FILES: Final = 256
#: Of them not for uploads and downloads: Redis, the subscription, what Python itself opens.
OWN_FILES: Final = 96
#: Connections kept for who asks whether all is well, when all others are taken.
OPERATORS: Final = 32
#: Without any limit of the system's.
UNLIMITED: Final = 1_000_000


def raise_open_files() -> None:
    """To as many as this process may have: the limit that programs start with is from a time of `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS says that there is none and takes no such number
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(10_240, hard) if hard > 0 else 10_240), hard))


@cache
def most_connections() -> int:
    """Looked up once, when it is first needed."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, soft - _reserved(soft)) if soft != resource.RLIM_INFINITY else UNLIMITED


def _reserved(soft: int) -> int:
    return max(RESERVED_FILES, min(soft // 8, 8192))


@cache
def most_downloads() -> int:
    """At once, of everybody. Each is two files beside its connection, and may have half of what is reserved."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, (_reserved(soft if soft != resource.RLIM_INFINITY else UNLIMITED) - OWN_FILES) // 4)


def downloads_of_one() -> int:
    return max(4, most_downloads() // 2)


def most_strangers() -> int:
    """Connections on which nobody has said who they are."""
    return most_connections() // 4


def streams_of_one() -> int:
    """What one owner, or one address, may take of them with streams, where no setting says it."""
    return min(20_000, most_connections() * 3 // 4)


def uploads_of_one() -> int:
    return min(1000, most_connections() // 4)
