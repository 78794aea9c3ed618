"""The words of tus 1.0.0 (https://tus.io/protocols/resumable-upload): versions, headers, metadata, checksums.

What a header says is read here, or refused with what it should have been; nothing here touches an upload.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from email.utils import format_datetime
from functools import partial
from typing import Any, Final, Protocol

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from headway.api.dependencies import OwnerDep
from headway.shared.errors import BadHeader, ChecksumMismatch, UnsupportedType, WrongTusVersion

VERSION: Final = "1.0.0"
EXTENSIONS: Final = "creation,creation-with-upload,termination,expiration,checksum"
PIECE_TYPE: Final = "application/offset+octet-stream"
#: All of Upload-Metadata: options are small JSON, and the header is kept for who asks.
METADATA_BYTES: Final = 16 * 1024


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc32:
    """As four bytes, the highest first."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


#: Against a line's mistakes, not against an enemy, so the weak ones will do.
ALGORITHMS: Final[Mapping[str, Callable[[], _Digest]]] = {
    "sha1": partial(hashlib.sha1, usedforsecurity=False),
    "md5": partial(hashlib.md5, usedforsecurity=False),
    "sha256": hashlib.sha256,
    "crc32": _Crc32,
}


class TusRoute(APIRoute):
    """Every answer of these routes says the version, a refusal too, and is kept by no cache."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                headers["Tus-Resumable"] = VERSION
                headers.setdefault("Cache-Control", "no-store")
                if message["status"] == 412:
                    headers["Tus-Version"] = VERSION
                message = {**message, "headers": headers.raw}
            await send(message)

        await super().handle(scope, receive, send_with_version)


def check_version(request: Request, _: OwnerDep) -> None:
    """Raises WrongTusVersion; whom nobody knows is told that first."""
    if request.headers.get("tus-resumable") != VERSION:
        raise WrongTusVersion


def check_type(request: Request) -> None:
    """Raises UnsupportedType."""
    if not is_piece(request):
        raise UnsupportedType(f"Send the bytes as {PIECE_TYPE}.")


def is_piece(request: Request) -> bool:
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == PIECE_TYPE


def bytes_of(request: Request, name: str) -> int:
    """A header that is a number of bytes. Raises BadHeader."""
    value = request.headers.get(name, "")
    if not re.fullmatch(r"[0-9]{1,16}", value, re.ASCII) or int(value) > 2**53:
        raise BadHeader(f"{name} {'is missing' if not value else 'is not right'}: send a number of bytes.")
    return int(value)


def metadata_of(header: str) -> dict[str, str]:
    """`key base64,key base64`, a key alone having an empty value. Raises BadHeader."""
    if len(header) > METADATA_BYTES:
        raise BadHeader(f"Upload-Metadata is longer than {METADATA_BYTES} bytes.")
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, header.split(","))):
        key, _, value = pair.partition(" ")
        try:
            decoded = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            decoded = None
        if decoded is None or key in found:
            raise BadHeader(f"Upload-Metadata: {key[:80]!r} is not one key with one value in base64 of UTF-8.")
        found[key] = decoded
    return found


class Checksum:
    """What a piece's Upload-Checksum says, and what has been seen of the piece."""

    def __init__(self, algorithm: str, expected: bytes) -> None:
        self._expected = expected
        self._seen = ALGORITHMS[algorithm]()

    @classmethod
    def of(cls, request: Request) -> Checksum | None:
        """None where there is none. Raises BadHeader."""
        header = request.headers.get("upload-checksum")
        if header is None:
            return None
        algorithm, _, value = header.partition(" ")
        if algorithm not in ALGORITHMS:
            raise BadHeader(f"Upload-Checksum: {algorithm[:40]!r} is not one of {', '.join(ALGORITHMS)}.")
        try:
            return cls(algorithm, base64.b64decode(value.strip(), validate=True))
        except (binascii.Error, ValueError):
            raise BadHeader("Upload-Checksum: the checksum is not base64.") from None

    @property
    def expected(self) -> bytes:
        return self._expected

    async def seeing(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same body. Raises ChecksumMismatch at its end."""
        async for chunk in body:
            self._seen.update(chunk)
            yield chunk
        if not hmac.compare_digest(self._seen.digest(), self._expected):
            raise ChecksumMismatch


def whole_sha256(request: Request) -> str | None:
    """Upload-Checksum on a request that creates an upload and brings none of it: of the whole file, in hex. Raises
    BadHeader."""
    if (checksum := Checksum.of(request)) is None:
        return None
    if not request.headers["upload-checksum"].startswith("sha256 ") or len(checksum.expected) != 32:
        raise BadHeader("Upload-Checksum: the whole of a file is declared by its sha256, in base64.")
    return checksum.expected.hex()


def http_date(at: datetime) -> str:
    """RFC 9110, in whole seconds."""
    return format_datetime(at, usegmt=True)


def capabilities(max_upload_bytes: int) -> dict[str, Any]:
    return {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(max_upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
