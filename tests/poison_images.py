"""Images that mean harm: sizes that no memory holds, frames without end, lies, for `tests/poison.py`."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

Made = Iterator[tuple[str, Callable[[], bytes]]]


def _is(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">2L5B", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _rows(width_bytes: int, height: int) -> bytes:
    packer = zlib.compressobj(1)
    row = bytes(width_bytes + 1)
    return b"".join((*(packer.compress(row) for _ in range(height)), packer.flush()))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _photo(chance: random.Random, width: int = 300, height: int = 200) -> Image.Image:
    return Image.frombytes("RGB", (width, height), chance.randbytes(width * height * 3))


def images(chance: random.Random) -> Made:
    photo, small = _photo(chance), _photo(chance, 40, 30)
    yield "image-good.png", _is(_saved(photo, "PNG"))
    yield "image-good.jpg", _is(_saved(photo, "JPEG"))
    yield "image-good-progressive.jpg", _is(_saved(photo, "JPEG", progressive=True))
    yield "image-good.gif", _is(_saved(photo, "GIF"))
    yield "image-good.webp", _is(_saved(photo, "WEBP", lossless=True))
    yield "image-good.bmp", _is(_saved(photo, "BMP"))
    yield "image-good.tif", _is(_saved(photo, "TIFF", compression="tiff_lzw"))
    frames = [_photo(chance, 60, 60) for _ in range(4)]
    yield "image-good.apng", _is(_saved(small, "PNG", save_all=True, append_images=frames))
    yield "image-many-frames.gif", lambda: _saved(small, "GIF", save_all=True, append_images=[small, frames[0]] * 100)
    for mode in ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"):
        for kind in ("PNG", "TIFF", "JPEG"):
            try:
                data = _saved(small.convert("L" if mode == "I;16" else "RGB").convert(mode), kind)
            except (OSError, ValueError):
                continue
            yield f"image-mode-{mode.replace(';', '-')}.{kind.lower()}", _is(data)
    for turn in (*range(10), 0xFFFF):
        exif = Image.Exif()
        exif[0x0112] = turn
        yield f"image-turned-{turn}.jpg", _is(_saved(small, "JPEG", exif=exif))
    yield "image-50000-header.png", _is(_png(50_000, 50_000, _chunk(b"IDAT", zlib.compress(b"\0"))))
    yield "image-50000-whole.png", lambda: _png(50_000, 50_000, _chunk(b"IDAT", _rows(6250, 50_000)), depth=1, color=0)
    yield "image-12000-whole.png", lambda: _png(12_000, 12_000, _chunk(b"IDAT", _rows(36_000, 12_000)))
    yield "image-5000-rgba.png", lambda: _png(5000, 5000, _chunk(b"IDAT", _rows(20_000, 5000)), color=6)
    for width, height in (
        (0, 0),
        (0, 5),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (2**32 - 1, 2**32 - 1),
        (100_000, 1),
        (1, 65_000),
    ):
        yield f"image-{width}-by-{height}.png", _is(_png(width, height, _chunk(b"IDAT", zlib.compress(bytes(999)))))
        yield f"image-{width}-by-{height}.bmp", _is(_bmp(width, height))
        yield f"image-{width}-by-{height}.tif", _is(_tiff(width, height))
    for side in (1, 16_384, 65_535):
        lzw = b"\x02\x02\x4c\x01\0\x3b"
        screen = struct.pack("<6s2H3B", b"GIF89a", side, side, 0x80, 0, 0) + bytes(6)
        yield f"image-{side}.gif", _is(screen + struct.pack("<B4HB", 0x2C, 0, 0, side, side, 0) + lzw)
        yield f"image-{side}-frame.gif", _is(screen[:6] + struct.pack("<2H", 1, 1) + screen[10:] + lzw)
        yield f"image-{side}.jpg", _is(_resized(_saved(small, "JPEG"), side))
    text = zlib.compress(bytes(128 << 20))
    for chunk in (b"zTXt", b"iTXt", b"iCCP"):
        body = b"x\0\0" + text if chunk != b"iTXt" else b"x\0\1\0\0\0" + text
        yield (
            f"image-{chunk.decode()}-bomb.png",
            _is(_png(1, 1, _chunk(chunk, body), _chunk(b"IDAT", zlib.compress(bytes(4))))),
        )
    yield "image-many-chunks.png", lambda: _png(1, 1, *[_chunk(b"tEXt", b"a\0b")] * 200_000)
    yield (
        "image-unknown-chunk.png",
        _is(_png(1, 1, _chunk(b"eViL", bytes(99)), _chunk(b"IDAT", zlib.compress(bytes(4))))),
    )
    yield "image-without-data.png", _is(_png(100, 100))
    yield (
        "image-apng-says-4-billion-frames.png",
        _is(_png(1, 1, _chunk(b"acTL", b"\xff" * 8), _chunk(b"IDAT", zlib.compress(bytes(4))))),
    )
    yield "image-depth-64.png", _is(_png(9, 9, _chunk(b"IDAT", zlib.compress(bytes(999))), depth=64))
    yield "image-loop.tif", _is(_tiff(10, 10, following=8))
    yield "image-vector.svg", _is(b'<svg xmlns="http://www.w3.org/2000/svg" width="9999999" height="9999999"/>')
    yield "image-script.eps", _is(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n")
    yield "image-icon.ico", _is(_saved(small, "ICO"))


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<L2L2H6L", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sL2HL", b"BM", 54 + 99, 0, 0, 54) + info + bytes(99)


def _tiff(width: int, height: int, following: int = 0) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: 99}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHLH", b"II", 42, 8, len(tags)) + entries + struct.pack("<L", following) + bytes(199)


def _resized(jpeg: bytes, side: int) -> bytes:
    """A JPEG whose frame says that it is so large."""
    place = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:place] + struct.pack(">2H", side, side) + jpeg[place + 4 :]
