"""Whether the storage can be used: asked once for all who want to know at this time, and logged when it changes.

A disk that hangs does not answer, and holds one thread, not one a question. Entered by the lifespan; leaving it gives
up what is still being asked.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final

from headway.shared.cancellation import cancel
from headway.shared.files.disk import STORAGE_FAULTS, on_disk, told_by_the_system
from headway.shared.files.storage import Storage
from headway.shared.logging import get_logger

log = get_logger(__name__)

#: Longer than a disk takes, shorter than whoever asks for readiness waits.
PATIENCE_SECONDS: Final = 1.0
#: An answer is as good for this long: anybody may ask for readiness, and a bucket may be far.
KEPT_SECONDS: Final = 1.0


class StorageCheck:
    def __init__(self, storage: Storage, folder: Path | None) -> None:
        """`folder`: where the files are on a disk of ours; None: they are in a bucket, which does not say how full it
        is."""
        self._storage = storage
        self._folder = folder
        #: Of the disk, from 0 to 1, as `df` says it, when it was asked last; None: nobody knows.
        self.used: float | None = None
        self._asking: asyncio.Task[str | None] | None = None
        self._answered_at = 0.0
        self._said: str | None = None

    async def __aenter__(self) -> StorageCheck:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asking is not None:
            await cancel(self._asking)

    async def trouble(self) -> str | None:
        """What is wrong with it, in words without a path; None where it can be used."""
        now = asyncio.get_running_loop().time()
        asking = self._asking
        if asking is None or (asking.done() and now - self._answered_at > KEPT_SECONDS):
            asking = self._asking = asyncio.create_task(self._ask(), name="storage check")
        await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        return asking.result() if asking.done() else self._say("The storage of the files does not answer.")

    async def _ask(self) -> str | None:
        try:
            await self._storage.check()
            if self._folder is not None:
                disk = await on_disk(shutil.disk_usage, self._folder)
                self.used = disk.used / max(1, disk.used + disk.free)
        except STORAGE_FAULTS as error:
            return self._say(str(error), **told_by_the_system(error))
        except Exception as error:
            log.exception("storage check broke")
            return self._say(f"The storage of the files cannot be used: {type(error).__name__}.")
        else:
            return self._say(None)
        finally:
            self._answered_at = asyncio.get_running_loop().time()

    def _say(self, trouble: str | None, **fields: str) -> str | None:
        if trouble != self._said:
            self._said = trouble
            if trouble is None:
                log.info("storage back")
            else:
                log.error("storage trouble", reason=trouble, **fields)
        return trouble
