"""A download that is made while it is sent: an export, in flat memory whatever its length, compressed when asked for.

`MadeResponse` owns its pages from the first byte to the last. A client that leaves stops the making; one that takes
nothing for the send time-out is cut off. Where the making fails in the middle the connection is cut, so that a body
that ends well is whole: a client sees an error, never a clean short file.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headway.api.downloads.download_slot import Turn, downloading
from headway.api.serving.counted_log import counted_line
from headway.api.serving.tally import Count, uncounted
from headway.api.streams.sse import abort, gone
from headway.shared.cancellation import cancel
from headway.shared.errors import ExportCut
from headway.shared.logging import get_logger

log = get_logger(__name__)

#: zlib's own default of 6 makes our tables no smaller (tasks 31 % at both, numbers 25 against 23 %) and takes up to
#: three times as long, all of it on the event loop.
GZIP_LEVEL: Final = 4
#: zlib's way to be told that the stream is gzip's, with the largest window.
GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS

_QUALITY: Final = re.compile(r"\s*q\s*=\s*([0-9.]+)\s*", re.IGNORECASE)


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether gzip was asked for (RFC 9110, section 12.5.3): by its name or by `*`, with a quality above zero."""
    asked: dict[str, float] = {}
    for part in accept_encoding.split(","):
        coding, _, parameter = part.partition(";")
        quality = _QUALITY.fullmatch(parameter)
        try:
            asked[coding.strip().lower()] = float(quality[1]) if quality else 1.0
        except ValueError:
            asked[coding.strip().lower()] = 0.0
    return asked.get("gzip", asked.get("x-gzip", asked.get("*", 0.0))) > 0


class GeneratedDownload(Response):
    """Sends `pages`, each as soon as it is made; they raise ExportCut where the rest cannot be had. A page is some tens
    of KiB: worth a write, and small beside memory and beside what the event loop can be kept from others."""

    def __init__(
        self,
        pages: AsyncGenerator[bytes, None],
        *,
        filename: str,
        media_type: str,
        send_timeout_seconds: float,
        count: Count = uncounted,
    ) -> None:
        headers = {
            "Content-Disposition": f'attachment; filename="{filename}"',
            "Cache-Control": "no-store",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._pages = pages
        self._send_timeout_seconds = send_timeout_seconds
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gzip = accepts_gzip(",".join(Headers(scope=scope).getlist("accept-encoding")))
        if gzip:
            self.headers["Content-Encoding"] = "gzip"
        async with aclosing(self._pages):
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
                return
            with downloading(scope) as turn:
                await self._send_whole(scope, receive, send, gzip, turn)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send, gzip: bool, turn: Turn) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_all(send, gzip, turn), name="export")
        leaving = asyncio.create_task(gone(receive), name="client gone")
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except TimeoutError:
            counted_line(log.info, "slow client dropped", path=scope["path"])
        except ExportCut as cut:
            counted_line(log.warning, "export cut off", path=scope["path"], reason=str(cut))
        finally:
            left = leaving.done()
            await asyncio.shield(cancel(sending, leaving))
            unfinished = sending.cancelled() or sending.exception() is not None
            if unfinished and not left:
                abort(scope)

    async def _send_all(self, send: Send, gzip: bool, turn: Turn) -> None:
        squeeze = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW) if gzip else None
        await turn()
        async for page in self._pages:
            if squeeze:
                await turn()
                # Flushed, so that the client has this page before the next one is made.
                page = squeeze.compress(page) + squeeze.flush(zlib.Z_SYNC_FLUSH)
            await self._send(send, page, more=True)
            await asyncio.sleep(0)  # uvicorn does not wait while there is room, and others want the loop
            await turn()
        await self._send(send, squeeze.flush() if squeeze else b"", more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        async with asyncio.timeout(self._send_timeout_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})
        self._count(len(body))
