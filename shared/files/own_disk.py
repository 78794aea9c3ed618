"""The scratch folders of the attempts on a worker's own disk, where the files are in a bucket (shared/files/bucket.py).

No sweeper of another machine sees what a worker that was killed left there. So whoever makes scratch folders holds the
place they are in, by a lock that goes with the process, and who starts and finds it free removes what lies there.
"""

from __future__ import annotations

import fcntl
import os
import re
import weakref
from pathlib import Path
from typing import Final

from headway.shared.files.trees import remove_tree
from headway.shared.logging import get_logger
from headway.shared.tasks.models import TaskId

log = get_logger(__name__)

_SCRATCH: Final = re.compile(r"([0-9a-f]{32})-([0-9]+)-[0-9a-f]+")


class OwnDisk:
    """All of it is blocking, and raises OSError where the place cannot be opened: what is not held may be removed by
    others. A file system without locks is left as it is, and that is logged."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._occupied = False

    def remove_what_is_nobodys(self) -> None:
        held = os.open(self._place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self._locked(held, fcntl.LOCK_EX | fcntl.LOCK_NB):
                for path in self._place.iterdir():
                    if _SCRATCH.fullmatch(path.name):
                        remove_tree(path, self._say_left)
        finally:
            os.close(held)

    def _locked(self, held: int, how: int) -> bool:
        try:
            fcntl.flock(held, how)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("scratch folders not locked", reason=error.strerror, place=str(self._place))
            return False
        return True

    def _say_left(self, error: OSError) -> None:
        log.warning("scratch folder left", reason=error.strerror, place=str(error.filename or self._place))

    def occupy(self) -> None:
        """From here on it is somebody's, until this object or its process ends."""
        if self._occupied:
            return
        held = os.open(self._place, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, held)
        self._locked(held, fcntl.LOCK_SH)
        self._occupied = True

    def newest_attempt(self, task_id: TaskId) -> int:
        """Of those of a task that have a scratch folder here; 0 without one."""
        found = (_SCRATCH.fullmatch(path.name) for path in self._place.glob(f"{task_id}-*"))
        return max((int(name[2]) for name in found if name is not None), default=0)
