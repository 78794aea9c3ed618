"""A picture from its bytes: upright, in RGB, and never decoded when there is no memory for it.

An image says how large it is in its first bytes, so one of 50,000 × 50,000 pixels is refused before it is decoded. A
JPEG is decoded at the size that is wanted, so a large one costs little. Of an animation the first frame is taken. How
the camera was held is said by Exif, by XMP, or by the format itself; where one of them is broken the picture is not.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from headway.shared.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is decoded here. Pillow knows more, some by programs that it starts and some that nobody has looked at since.
FORMATS: Final = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "AVIF", "JPEG2000", "HEIF")

#: Even where a decoder needs no memory for them, they take longer than anybody waits for a thumbnail.
MOST_PIXELS: Final = 500_000_000

#: Of a pixel, in Pillow and in the copy that scaling needs: alpha is multiplied in first, a palette looked up.
PIXEL_BYTES: Final = {"1": 2, "L": 1, "RGB": 4, "CMYK": 4, "YCbCr": 4, "LAB": 4, "HSV": 4, "I": 4, "F": 4}
OTHER_PIXEL_BYTES: Final = 12
#: A progressive JPEG's coefficients are held for the whole image before any of it can be scaled.
PROGRESSIVE_PIXEL_BYTES: Final = 6
#: A film's codec decodes into planes of its own first.
FILM_PIXEL_BYTES: Final = 12

#: A colour profile that is larger is no profile.
PROFILE_BYTES: Final = 1024 * 1024

_ORIENTATION: Final = 0x0112
_XMP: Final = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])\b")
_SVG: Final = re.compile(rb"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<(?:\w+:)?svg\b", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Picture:
    """`image` is upright, at most as large as was wanted. `width` and `height` are the whole picture's, upright too."""

    image: Image
    width: int
    height: int
    format: str | None
    mode: str
    profile: bytes | None
    notes: tuple[str, ...]


def decode(file: BinaryIO, size: int, memory_bytes: int, *, alpha: bool) -> Picture:
    """The picture, of at most `size` pixels a side. Raises BadInput for what is none, and OSError of this machine."""
    # Here and not above: the API, which lists processors, has no use for it.
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    _know_heif()
    head = file.read(4096)
    file.seek(0)
    if _SVG.match(head.removeprefix(b"\xef\xbb\xbf")):
        raise BadInput(
            "This is an SVG, a drawing without pixels. Export it as a PNG of the size you need, and send that."
        )
    notes = list[str]()
    with _plain_errors(), Image.open(file, formats=FORMATS) as opened:
        form, mode, (width, height) = opened.format, opened.mode, opened.size
        films = FILM_PIXEL_BYTES if form in ("HEIF", "AVIF") else 0
        _check_pixels(width, height, memory_bytes, PROGRESSIVE_PIXEL_BYTES if "progressive" in opened.info else films)
        opened.draft(None, (size, size))  # a JPEG is decoded at an eighth of its size, if that is enough
        _check_pixels(*opened.size, memory_bytes, PIXEL_BYTES.get(opened.mode, OTHER_PIXEL_BYTES))
        opened.load()
        if opened.size == (height, width):  # a TIFF is turned by its decoder
            width, height = height, width
        turn = _orientation(opened, notes)
        profile = opened.info.get("icc_profile")
        profile = profile if isinstance(profile, bytes) and len(profile) <= PROFILE_BYTES else None
        image = _turned(scaled(opened, size), turn)
        if image.mode == "CMYK" and profile:
            image = _by_profile(image, profile, notes)
        image = _drawable(image, alpha=alpha)
    if turn >= 5:
        width, height = height, width
    return Picture(image, width, height, form, mode, profile if mode in ("RGB", "RGBA") else None, tuple(notes))


def _know_heif() -> None:
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.register_heif_opener()


def _orientation(image: Image, notes: list[str]) -> int:
    """1 to 8 as Exif has it; after the picture was decoded, so that what its decoder has done is not done again."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:
        notes.append("The Exif data of the picture is broken, and was left out.")
        found = None
    if found is None and image.format not in ("TIFF", "HEIF"):
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
        said = _XMP.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
        found = int(said[1]) if said else None
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    ways = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(ways[orientation]) if orientation in ways else image


def _by_profile(image: Image, profile: bytes, notes: list[str]) -> Image:
    """The colours of a print as a screen shows them."""
    from PIL import ImageCms

    try:
        found = ImageCms.profileToProfile(
            image,
            io.BytesIO(profile),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append("The colour profile of the picture is broken, so its colours are a plain conversion.")
        return image
    return found or image


def _check_pixels(width: int, height: int, memory_bytes: int, pixel_bytes: int) -> None:
    """Half of the memory is for the image; the rest is Python, the decoder, and what is written."""
    most = min(MOST_PIXELS, memory_bytes // 2 // pixel_bytes if pixel_bytes else MOST_PIXELS)
    if width * height > most:
        raise BadInput(
            f"The image has {width:,} × {height:,} pixels, and at most {most / 1e6:.0f} megapixels of its kind can be "
            "taken here. Send it smaller."
        )


def scaled(image: Image, size: int) -> Image:
    """A copy of at most `size` pixels a side, in a mode that can be scaled smoothly."""
    from PIL import Image as Module

    if image.mode in ("P", "PA", "1") or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    elif image.mode.startswith("I;16"):
        image = image.convert("I")
    share = min(1.0, size / max(image.size))
    target = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    small = image.resize(target, Module.Resampling.LANCZOS, reducing_gap=2.0)
    small.info = {}
    return small


def _drawable(image: Image, *, alpha: bool) -> Image:
    """In RGB, with alpha where it has one and the format too, else on white."""
    from PIL import Image as Module

    if image.mode in ("I", "F"):  # no more than a camera's: what is darkest is black, what is lightest white
        low, high = image.getextrema()
        scale = 255 / (high - low) if high > low else 0.0  # type: ignore[operator]
        image = image.convert("F").point(lambda value: value * scale - low * scale).convert("L")  # type: ignore[operator]
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if alpha:
        return image
    white = Module.new("RGBA", image.size, "white")
    return Module.alpha_composite(white, image).convert("RGB")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What Pillow cannot read is BadInput, whatever it raises; what is wrong with this machine is not."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BadInput, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadInput(f"This is no image that is known here. Send one of: {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError:
        raise BadInput(f"The image has more than {MOST_PIXELS / 1e6:.0f} megapixels. Send it smaller.") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged() from None
    except Exception:
        raise _damaged() from None


def _damaged() -> BadInput:
    return BadInput("The image is damaged or cut short: it cannot be decoded. Open it, save it again, and send that.")
