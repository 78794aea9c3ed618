"""The answer that sends a file: always an attachment, whole, in the ranges asked for, or a word that the client has it.

It owns the file from the first byte to the last: nothing stays open whether the answer ended, the client left or
stopped reading, or the file became shorter on the way. Then the connection is cut: a client sees that bytes are
missing, and never takes a part for the whole. Where the file lies on this machine and uvicorn serves plain HTTP/1.1,
the kernel sends it (api/downloads/sendfile.py); else it is read piece by piece.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import re
import secrets
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from email.utils import formatdate
from functools import partial
from typing import Any, Final, cast
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headway.api.downloads.download_slot import Turn, downloading
from headway.api.downloads.preconditions import Verdict, judge, range_counts
from headway.api.downloads.ranges import Piece, framed, parse_ranges
from headway.api.downloads.sendfile import Connection
from headway.api.problems import PROBLEMS, problem_response
from headway.api.serving.counted_log import counted_line
from headway.api.serving.tally import Count, uncounted
from headway.api.streams.sse import abort, gone
from headway.shared.cancellation import cancel
from headway.shared.errors import Forbidden, HeadwayError, PreconditionFailed, RangeNotSatisfiable
from headway.shared.files.directory import open_to_read
from headway.shared.files.disk import STORAGE_FAULTS, on_disk, told_by_the_system
from headway.shared.files.storage import StoredObject
from headway.shared.logging import get_logger

log = get_logger(__name__)

#: Told the bytes sent of those to send: at most this often, and at the end.
Show = Callable[[int, int], Awaitable[None]]
SHOW_SECONDS: Final = 0.1

#: Nothing in a file of a stranger runs with this page's rights, even if it is opened.
_SAFE: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
#: What a page asks for to run or to apply it (Fetch Metadata): `script-src 'self'` would take a stranger's upload.
_RUN: Final = frozenset(
    (
        *("script", "style", "worker", "serviceworker", "sharedworker", "audioworklet", "paintworklet", "xslt"),
        *("manifest", "object", "embed", "frame", "iframe", "webidentity"),
    )
)
_MEDIA_TYPE: Final = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:; ?[\w-]+=[\w-]+)*", re.ASCII)
#: What sending says of the file, not of the client.
_OUR_OWN: Final = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}
#: Letters that turn the reading direction: `gpj.exe` would be shown as `exe.jpg`.
_TURNING: Final = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Attachment(Response):
    """An ASGI application that answers GET and HEAD of one file. `sha256` in hex; without it there is no ETag."""

    def __init__(
        self,
        content: StoredObject,
        *,
        name: str,
        content_type: str | None,
        sha256: str | None,
        send_timeout_seconds: float,
        show: Show | None = None,
        count: Count = uncounted,
    ) -> None:
        self._content = content
        self._content_type = content_type if _MEDIA_TYPE.fullmatch(content_type or "") else None
        self._etag = f'"{sha256}"' if sha256 is not None else None
        # A time to come is no time of a last change (RFC 9110, 8.8.2.1).
        self._modified_at = int(min(content.modified_at, time.time()))
        self._send_timeout_seconds = send_timeout_seconds
        self._show = show
        self._count = count
        headers = _SAFE | {
            "Content-Type": self._content_type or "application/octet-stream",
            "Content-Length": str(content.size_bytes),
            "Content-Disposition": disposition(name),
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, no-cache",
            "Last-Modified": formatdate(self._modified_at, usegmt=True),
        }
        if sha256 is not None:
            headers["ETag"] = f'"{sha256}"'
            headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
        super().__init__(headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        if asked.get("sec-fetch-dest", "empty") in _RUN:
            raise Forbidden("A file of somebody's is for looking at and saving, not for running in a page.")
        verdict = judge(asked, etag=self._etag, modified_at=self._modified_at)
        if verdict is Verdict.FAILED:
            raise PreconditionFailed
        if verdict is Verdict.NOT_MODIFIED:
            of_the_body = ("content-length", "content-type", "content-disposition", "repr-digest")
            headers = {name: value for name, value in self.headers.items() if name not in of_the_body}
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        size_bytes = self._content.size_bytes
        pieces = None
        if "range" in asked and range_counts(asked, etag=self._etag, modified_at=self._modified_at):
            try:
                pieces = parse_ranges(",".join(asked.getlist("range")), size_bytes)
            except RangeNotSatisfiable as error:
                headers = {"Content-Range": f"bytes */{size_bytes}", "Accept-Ranges": "bytes"}
                problem = problem_response(PROBLEMS[RangeNotSatisfiable], str(error), headers=headers)
                await problem(scope, receive, send)
                return
        await self._answer(pieces, scope, receive, send)

    async def _answer(self, pieces: list[Piece] | None, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=list(self.raw_headers))
        size_bytes = self._content.size_bytes
        body: Sequence[bytes | Piece] = pieces if pieces is not None else [Piece(0, size_bytes)]
        if pieces is not None and len(pieces) == 1:
            headers["Content-Range"] = pieces[0].content_range(size_bytes)
        elif pieces is not None:
            boundary = secrets.token_hex(16)
            body = framed(pieces, size_bytes, headers["Content-Type"], boundary)
            headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        headers["Content-Length"] = str(sum(map(len, body)))
        start = {"type": "http.response.start", "status": 200 if pieces is None else 206, "headers": headers.raw}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        with downloading(scope) as turn:
            async with self._opened(Connection.of(scope)) as (connection, file):
                await send(start)
                if connection is not None and not connection.expects(int(headers["Content-Length"])):
                    file = None
                await _Sending(self._content, body, connection, file, send, self._count, turn).run(
                    scope, receive, send_timeout_seconds=self._send_timeout_seconds, show=self._show
                )

    @asynccontextmanager
    async def _opened(self, connection: Connection | None) -> AsyncIterator[tuple[Connection | None, int | None]]:
        """The file's descriptor, if the connection takes files. Raises UnknownFile, STORAGE_FAULTS."""
        if connection is None or not connection.takes_files or self._content.path is None:
            yield connection, None
            return
        file = await on_disk(open_to_read, self._content.path)
        try:
            yield connection, file
        finally:
            os.close(file)


class _Sending:
    """One body on its way out."""

    def __init__(
        self,
        content: StoredObject,
        body: Sequence[bytes | Piece],
        connection: Connection | None,
        file: int | None,
        send: Send,
        count: Count,
        turn: Turn,
    ) -> None:
        self._content = content
        self._body = body
        self._connection = connection
        self._file = file
        self._send = send
        self._counted = count
        self._turn = turn
        self._sent = 0
        #: Of the file: what stands between its pieces is not what anybody waits for.
        self._total = sum(len(part) for part in body if isinstance(part, Piece))

    async def run(self, scope: Scope, receive: Receive, *, send_timeout_seconds: float, show: Show | None) -> None:
        """Returns when all is sent, the client has left, or the connection is cut."""
        sending = asyncio.create_task(self._all(), name="download")
        watching = [
            asyncio.create_task(gone(receive), name="client gone"),
            asyncio.create_task(self._standstill(send_timeout_seconds), name="client stalled"),
        ]
        showing = [asyncio.create_task(self._keep_showing(show), name="show transfer")] if show is not None else []
        try:
            await asyncio.wait({sending, *watching}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            elif watching[1].done():
                raise TimeoutError("the client takes nothing")
        except (OSError, EOFError, HeadwayError) as error:
            if not isinstance(error, ConnectionError):  # that is a client that has left
                about = {"path": scope["path"], "reason": str(error), **told_by_the_system(error)}
                ours = isinstance(error, STORAGE_FAULTS) or getattr(error, "errno", None) in _OUR_OWN
                line = log.error if ours else partial(counted_line, log.info)
                line("download cut", sent_bytes=self._sent, **about)
            if self._connection is None:
                raise ConnectionAbortedError("the answer cannot be completed") from error  # the server cuts it
            if not self._connection.closed:
                abort(scope)
            await asyncio.wait(watching[:1], timeout=1)  # uvicorn has then heard of it, and does not wonder
        finally:
            await asyncio.shield(cancel(sending, *watching, *showing))
        if show is not None:
            await show(self._taken, self._total)

    @property
    def _taken(self) -> int:
        """What the client's machine has, as far as can be known; all of it, once all of it was sent."""
        waiting = self._connection.waiting_bytes if self._connection is not None and self._sent < self._total else 0
        return max(0, self._sent - waiting)

    async def _all(self) -> None:
        for part in self._body:
            if isinstance(part, Piece):
                await self._piece(part)
            else:
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _piece(self, piece: Piece) -> None:
        position = piece.start
        if self._file is not None and self._connection is not None:
            position = await self._connection.send_file(self._file, position, piece.end, self._count, self._turn)
        if position == piece.end:
            return
        # An async generator, whatever it is called: closed here, not when somebody gets round to it.
        async with aclosing(cast(Any, self._content.read(position, piece.end))) as chunks:
            async for data in chunks:
                position += len(data)
                if position > piece.end:
                    raise EOFError("more was read than was asked for")
                await self._turn()
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
                self._count(len(data))
        if position < piece.end:
            raise EOFError("the file has become shorter")

    def _count(self, size_bytes: int) -> None:
        self._sent += size_bytes
        self._counted(size_bytes)

    async def _standstill(self, seconds: float) -> None:
        """Returns when nothing has moved for this long: neither did we send nor the client's machine acknowledge."""
        loop = asyncio.get_running_loop()
        seen, seen_at = (-1, -1), loop.time()
        while loop.time() - seen_at < seconds:
            now = self._sent, self._connection.waiting_bytes if self._connection is not None else 0
            if now != seen:
                seen, seen_at = now, loop.time()
            await asyncio.sleep(seconds / 8)

    async def _keep_showing(self, show: Show) -> None:
        shown = 0
        while True:
            await asyncio.sleep(SHOW_SECONDS)
            if (taken := self._taken) != shown and taken < self._total:
                shown = taken
                await show(taken, self._total)


def disposition(name: str) -> str:
    """`attachment` with the name by RFC 6266 and 8187: as it is for all who know UTF-8, in ASCII for the others."""
    # What ends a header, leads out of a folder or turns the reading direction is no part of a name.
    clean = "".join("_" if _unfit(character) else character for character in name) or "download"
    plain = unicodedata.normalize("NFKD", clean)
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    plain = re.sub(r'[^\x20-\x7e]|["%]', "_", plain)
    if plain == clean:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(clean, safe='!#$&+-.^_`|~')}"


def _unfit(character: str) -> bool:
    return character in "/\\" or character in _TURNING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
