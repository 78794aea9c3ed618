"""The processor `compress`: the file as one zstd frame or one gzip member, in memory that does not grow with it.

What it writes, everybody's tools can read: `zstd -d`, `gunzip`. A zstd frame carries the size and a checksum of what is
in it, a gzip member both as well; neither carries a name or a time, so the same input gives the same bytes.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, Final, Literal, Protocol, Self

from pydantic import Field, model_validator

from headway.shared.tasks.processors import Job, Options, processor
from headway.worker.processors.result_names import plain_name

#: Handed to the compressor at a time: the GIL is free meanwhile, and a child that is told to stop need not listen.
CHUNK_BYTES: Final = 1024 * 1024

#: The tools' own defaults, and their highest levels that need no extra memory to unpack again.
LEVELS: Final = {"zstd": (3, 19), "gzip": (6, 9)}

#: 16 more than the largest window is how zlib is told to write a gzip header.
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class CompressOptions(Options):
    """How to compress."""

    format: Literal["zstd", "gzip"] = Field(default="zstd", description="what to make: a .zst or a .gz")
    level: int | None = Field(
        default=None, ge=1, le=19, description="1 is fastest; the most is 19 for zstd, 9 for gzip; left out: 3 and 6"
    )

    @model_validator(mode="after")
    def _the_format_has_the_level(self) -> Self:
        _, most = LEVELS[self.format]
        if self.level is not None and self.level > most:
            raise ValueError(f"{self.format} has levels from 1 to {most}")
        return self


class Compressor(Protocol):
    """What zlib's and zstd's have in common."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


@processor(
    "compress",
    description="The file compressed by zstd or gzip",
    options=CompressOptions,
    phases={"Compressing": 1},
    preload=() if sys.version_info >= (3, 14) else ("backports.zstd",),
)
def compress(job: Job) -> dict[str, Any]:
    """The result file is the input's name with `.zst` or `.gz` after it. An empty file is compressed too.

    Summary: `format`, `size_bytes` before, `compressed_bytes` after, and `ratio`, how many times smaller that is.
    """
    options: CompressOptions = job.options
    usual, _ = LEVELS[options.format]
    level = usual if options.level is None else options.level
    ending, content_type = (".zst", "application/zstd") if options.format == "zstd" else (".gz", "application/gzip")
    compressor = _zstd(level, job.size_bytes) if options.format == "zstd" else _gzip(level)
    size_bytes = compressed_bytes = 0
    job.phase("Compressing", total=job.size_bytes, unit="bytes")
    with job.open_input() as file, job.create_output(plain_name(job.filename) + ending, content_type) as output:
        while chunk := file.read(CHUNK_BYTES):
            compressed_bytes += output.write(compressor.compress(chunk))
            size_bytes += len(chunk)
            job.advance(len(chunk))
        compressed_bytes += output.write(compressor.flush())
    ratio = round(size_bytes / compressed_bytes, 3)
    return {"format": options.format, "size_bytes": size_bytes, "compressed_bytes": compressed_bytes, "ratio": ratio}


def _gzip(level: int) -> Compressor:
    return zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW)


def _zstd(level: int, size_bytes: int) -> Compressor:
    # Here and not above: the API, which lists processors, has no use for it.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    compressor = zstd.ZstdCompressor(
        options={zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.checksum_flag: 1}
    )
    compressor.set_pledged_input_size(size_bytes)
    return compressor
