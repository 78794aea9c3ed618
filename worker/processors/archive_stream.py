"""What comes out of packed bytes, read forward, a bounded piece at a time.

A decompressor is never asked for more than a piece, so a few bytes that stand for gigabytes cost no memory, and what
has come out is counted as it comes: no size that a file declares of itself is believed. What is damaged, cut short,
needs a larger window than there is memory for, or unpacks to more than it may, is BadInput with a sentence.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from headway.shared.errors import BadInput

#: Read, unpacked and handed on at a time.
PIECE_BYTES: Final = 64 * 1024

#: zlib's `wbits` for bytes without a header, as in a zip, and with gzip's.
DEFLATE: Final = -zlib.MAX_WBITS
GZIP: Final = 16 + zlib.MAX_WBITS

#: zstd's own bound for who unpacks without being told otherwise.
ZSTD_WINDOW_BITS: Final = 27


class Decoder(Protocol):
    """What bz2's, lzma's and zstd's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Inflate:
    """zlib's decompressor with the manners of the others."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        # A piece that came out full may have left something in the window, with nothing of the input left over.
        self.needs_input = len(out) < max_length and not self._inner.unconsumed_tail
        return out

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


@dataclass(frozen=True, slots=True)
class Packing:
    """A way to pack one stream of bytes. `name` is its ending too."""

    name: str
    endings: tuple[str, ...]
    magic: tuple[bytes, ...]
    decoder: Callable[[int], Decoder]  # given the task's memory


def xz(memory_bytes: int) -> Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory_bytes // 4)


def zstd(memory_bytes: int) -> Decoder:
    if sys.version_info >= (3, 14):
        from compression import zstd as library
    else:
        from backports import zstd as library

    window_bits = min(ZSTD_WINDOW_BITS, max(10, (memory_bytes // 4).bit_length() - 1))
    return library.ZstdDecompressor(options={library.DecompressionParameter.window_log_max: window_bits})


PACKINGS: Final = (
    Packing("gz", (".gz",), (b"\x1f\x8b",), lambda _: Inflate(GZIP)),
    Packing("bz2", (".bz2",), (b"BZh",), lambda _: bz2.BZ2Decompressor()),
    Packing("xz", (".xz",), (b"\xfd7zXZ\x00",), xz),
    # pzstd's files begin with a frame to be skipped.
    Packing(
        "zst", (".zst", ".zstd"), (b"\x28\xb5\x2f\xfd", *(bytes((n, 0x2A, 0x4D, 0x18)) for n in range(80, 96))), zstd
    ),
)


def packing_of(head: bytes) -> Packing | None:
    return next((one for one in PACKINGS if head.startswith(one.magic)), None)


class Stream:
    """All that a file unpacks to: the streams of one packing, one after the other, or the file as it is. Reads forward
    only; `seek` skips. What follows the last stream and is none is left alone, as every tool does."""

    def __init__(self, raw: BinaryIO, packing: Packing | None, *, memory_bytes: int, most_bytes: int) -> None:
        self._raw = raw
        self._packing = packing
        self._memory_bytes = memory_bytes
        self._most_bytes = most_bytes
        self._pieces = self._unpack() if packing else iter(())
        self._ahead = b""  # unpacked and not yet read
        self._position = 0
        self._came = 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        if self._packing is None:
            found = self._raw.read(size)
        else:
            while len(self._ahead) < size and (piece := next(self._pieces, b"")):
                self._ahead += piece
            found, self._ahead = self._ahead[:size], self._ahead[size:]
        self._position += len(found)
        return found

    def peek(self, size: int) -> bytes:
        """What `read` would give."""
        if self._packing is None:
            found = self._raw.read(size)
            self._raw.seek(-len(found), io.SEEK_CUR)
            return found
        found = self.read(size)
        self._ahead = found + self._ahead
        self._position -= len(found)
        return found

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Forward only, at most to the end. Raises BadInput for what lies behind: no archive that is whole does."""
        if whence != io.SEEK_SET or position < self._position:
            raise damaged()
        if self._packing is None:
            self._position = self._raw.seek(position)
        while self._position < position and self.read(min(PIECE_BYTES, position - self._position)):
            pass
        return self._position

    def _unpack(self) -> Iterator[bytes]:
        assert self._packing is not None
        data = self._raw.read(PIECE_BYTES)
        while data.startswith(self._packing.magic):
            decoder = self._packing.decoder(self._memory_bytes)
            for piece in unpack(decoder, data, self._raw):
                self._came += len(piece)
                if self._came > self._most_bytes:
                    raise too_large(self._most_bytes)
                yield piece
            data = decoder.unused_data
            while not (data := data.lstrip(b"\0")) and (more := self._raw.read(PIECE_BYTES)):
                data = more  # xz pads its streams by zeros
            if len(data) < 8:
                data += self._raw.read(PIECE_BYTES)


def unpack(decoder: Decoder, data: bytes, raw: BinaryIO) -> Iterator[bytes]:
    """What one stream unpacks to. `data` is the beginning of its input, which goes on in `raw`. Raises BadInput."""
    with plain_errors():
        while True:
            if piece := decoder.decompress(data, PIECE_BYTES):
                yield piece
            if decoder.eof:
                return
            data = b""
            if decoder.needs_input and not (data := raw.read(PIECE_BYTES)):
                raise BadInput("The file ends too early: a part of it is missing. Send the whole of it again.")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Everything a library finds wrong with a file is BadInput; what is wrong with this machine is not."""
    try:
        yield
    except (BadInput, MemoryError, GeneratorExit):
        raise
    except lzma.LZMAError as error:
        if "limit" in str(error):
            raise _needs_memory() from None
        raise damaged() from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise damaged() from None  # bz2 says so of bytes that are not its own
    except Exception as error:
        if "too much memory" in str(error) or "window" in str(error).lower():
            raise _needs_memory() from None
        raise damaged() from None


def damaged() -> BadInput:
    return BadInput("The archive is damaged: what is in it cannot be read. Make it again, or send it again.")


def _needs_memory() -> BadInput:
    return BadInput("The archive was packed with a larger window than there is memory for here. Pack it again by less.")


def too_large(most_bytes: int) -> BadInput:
    return BadInput(
        f"The archive unpacks to more than {most_bytes:,} bytes, far more than it looks like. If that is what it "
        "should, raise the options `max_bytes` and `max_ratio`."
    )
