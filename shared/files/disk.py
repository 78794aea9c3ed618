"""Work on a disk: in a thread, and with its faults as errors of ours.

    there is no room (ENOSPC, EDQUOT, EFBIG)                          StorageFull
    no descriptor is left (EMFILE, ENFILE)                            NoDescriptors
    the place is gone, refuses, takes no writes, or is broken         StorageAway
    anything else                                                     itself: a mistake, which is logged as one

A file that may not be there is no fault: whoever asks for it looks at that inside. What the system said stays with the
error as its cause, for the log alone, because it names a path.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from headway.shared.cancellation import in_thread
from headway.shared.descriptors import out_of_descriptors
from headway.shared.errors import NoDescriptors, StorageAway, StorageFull

P = ParamSpec("P")
T = TypeVar("T")

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN: Final = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ELOOP),
    # Of a disk that is gone, or behind a network.
    *(errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(getattr(errno, name) for name in ("EREMOTEIO", "EUCLEAN", "ENOLINK", "ESHUTDOWN") if hasattr(errno, name)),
}
#: What a place of files may be unable to do for a while.
STORAGE_FAULTS: Final = (StorageFull, StorageAway, NoDescriptors)


async def on_disk(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call, in a thread. Raises STORAGE_FAULTS."""
    return await asyncio.to_thread(_said(call), *args, **kwargs)


async def change_on_disk(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for what changes something: whoever is cancelled meanwhile hears it when all that it does is done."""
    return await in_thread(_said(call), *args, **kwargs)


def _said(call: Callable[P, T]) -> Callable[P, T]:
    def in_the_thread(*args: P.args, **kwargs: P.kwargs) -> T:
        with disk_faults():  # here, because on its way out of a thread a time-out of the system loses its path
            return call(*args, **kwargs)

    return in_the_thread


@contextmanager
def disk_faults(place: Path | None = None) -> Iterator[None]:
    """`place` is what is worked on, for the log, where the system does not say it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and place is not None:
            error.filename = str(place)
        if (ours := _fault(error)) is None:
            raise
        raise ours from error


@contextmanager
def full_disk_is_said() -> Iterator[None]:
    """Around a stranger's work, whose other errors are its own."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull from error
        raise


def _fault(error: OSError) -> StorageFull | StorageAway | NoDescriptors | None:
    if error.errno in _FULL:
        return StorageFull()
    if out_of_descriptors(error):
        return NoDescriptors()
    if error.errno in _BROKEN:
        return StorageAway(f"The storage of the files cannot be used: {error.strerror}. Try again in a moment.")
    return None


def told_by_the_system(error: BaseException) -> dict[str, str]:
    """Of an error of ours, what led to it, as fields for a log."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno is not None:
            place = {"place": str(found.filename)} if found.filename is not None else {}
            return {"errno": errno.errorcode.get(found.errno, str(found.errno)), **place}
        found = found.__cause__ or found.__context__
    return {}
