"""Whether this process, or this machine, has run out of file descriptors: then nothing can be opened or connected to,
and neither the disk nor Redis is to blame."""

from __future__ import annotations

import errno
import os
from typing import Final

_OUT: Final = {errno.EMFILE, errno.ENFILE}


def out_of_descriptors(error: BaseException) -> bool:
    """Whether it, or what led to it, says so."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _OUT:
            return True
        found = found.__cause__ or found.__context__
    return False


def none_is_left() -> bool:
    """Asked of the system, for an error that does not tell."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in _OUT
    return False
