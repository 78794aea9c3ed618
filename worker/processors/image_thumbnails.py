"""The processor `image-thumbnails`: an image in smaller sizes, without ever decoding more than there is memory for.

An image says how large it is in its first bytes, so one of 50,000 × 50,000 pixels is refused before it is decoded. A
JPEG is decoded at the size that is wanted, so a large one costs little. Of an animation the first frame is taken. A
thumbnail stands upright as the camera was held, is never larger than the image, and carries neither its place nor its
camera: of what an image has besides its pixels only the colour profile is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, field_validator

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, Options, processor
from headway.worker.processors.result_names import stem

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is decoded here. Pillow knows more, some by programs that it starts and some that nobody has looked at since.
FORMATS: Final = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "AVIF", "JPEG2000")

#: Even where a decoder needs no memory for them, they take longer than anybody waits for a thumbnail.
MOST_PIXELS: Final = 500_000_000

#: Of a pixel, in Pillow and in the copy that scaling needs: alpha is multiplied in first, a palette looked up.
PIXEL_BYTES: Final = {"1": 2, "L": 1, "RGB": 4, "CMYK": 4, "YCbCr": 4, "LAB": 4, "HSV": 4, "I": 4, "F": 4}
OTHER_PIXEL_BYTES: Final = 12
#: A progressive JPEG's coefficients are held for the whole image before any of it can be scaled.
PROGRESSIVE_PIXEL_BYTES: Final = 6

#: A colour profile that is larger is no profile.
PROFILE_BYTES: Final = 1024 * 1024

CONTENT_TYPES: Final = {"webp": "image/webp", "png": "image/png", "jpeg": "image/jpeg"}
QUALITY: Final = 85


class ImageThumbnailsOptions(Options):
    """Which thumbnails to make."""

    sizes: list[int] = Field(
        default=[128, 512], min_length=1, max_length=16, description="the longer side of each thumbnail, in pixels"
    )
    format: Literal["webp", "png", "jpeg"] = Field(default="webp", description="what the thumbnails are written as")

    @field_validator("sizes")
    @classmethod
    def _sizes_are_sides(cls, sizes: list[int]) -> list[int]:
        if not all(1 <= size <= 4096 for size in sizes):
            raise ValueError("a size is 1 to 4096 pixels")
        return sorted(set(sizes))


@processor(
    "image-thumbnails",
    description="Smaller copies of an image as WebP, PNG or JPEG",
    accepts=("image/*",),
    options=ImageThumbnailsOptions,
    # As measured on a photo of 12 megapixels.
    phases={"Decoding": 4, "Scaling": 1},
    preload=tuple(f"PIL.{name}ImagePlugin" for name in ("Png", "Jpeg", "Gif", "WebP", "Bmp", "Tiff", "Ico", "Ppm")),
)
def image_thumbnails(job: Job) -> dict[str, Any]:
    """Each thumbnail is a result file named by its size, `cat-128.webp`. Raises BadInput for what is no image.

    Summary: `width` and `height`, upright, `format` and `mode` of the image, and `thumbnails`, a list of `file`,
    `size`, `width` and `height`, the smallest first.
    """
    options: ImageThumbnailsOptions = job.options
    # Here and not above: the API, which lists processors, has no use for it.
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    largest = options.sizes[-1]
    job.phase("Decoding", unit="bytes")
    with job.open_input() as file, _plain_errors(), Image.open(file, formats=FORMATS) as opened:
        summary = {"format": opened.format, "mode": opened.mode}
        width, height = opened.size
        _check_pixels(width, height, job, PROGRESSIVE_PIXEL_BYTES if "progressive" in opened.info else 0)
        opened.draft(None, (largest, largest))  # a JPEG is decoded at an eighth of its size, if that is enough
        _check_pixels(*opened.size, job, PIXEL_BYTES.get(opened.mode, OTHER_PIXEL_BYTES))
        turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        profile = opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(_scaled(opened, largest))
        image = _drawable(image, alpha=options.format != "jpeg")
    if turned:
        width, height = height, width
    job.progress_to(job.size_bytes, job.size_bytes)

    job.phase("Scaling", total=len(options.sizes), unit="thumbnails")
    keep_profile = isinstance(profile, bytes) and len(profile) <= PROFILE_BYTES and summary["mode"] in ("RGB", "RGBA")
    thumbnails = []
    for size in options.sizes:
        small = _scaled(image, size)
        name = f"{stem(job.filename, 'image')}-{size}.{options.format.replace('jpeg', 'jpg')}"
        with job.create_output(name, CONTENT_TYPES[options.format]) as output:
            small.save(output, options.format, quality=QUALITY, exif=b"", icc_profile=profile if keep_profile else None)
        thumbnails.append({"file": name, "size": size, "width": small.width, "height": small.height})
        job.advance()
    return {"width": width, "height": height, **summary, "thumbnails": thumbnails}


def _check_pixels(width: int, height: int, job: Job, pixel_bytes: int) -> None:
    """Half of the memory is for the image; the rest is Python, the decoder, and what is written."""
    most = min(MOST_PIXELS, job.memory_bytes // 2 // pixel_bytes if pixel_bytes else MOST_PIXELS)
    if width * height > most:
        raise BadInput(
            f"The image has {width:,} × {height:,} pixels, and at most {most / 1e6:.0f} megapixels of its kind can be "
            "taken here. Send it smaller."
        )


def _scaled(image: Image, size: int) -> Image:
    """A copy of at most `size` pixels a side, in a mode that can be scaled smoothly."""
    from PIL import Image as Module

    if image.mode in ("P", "PA", "1") or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    elif image.mode.startswith("I;16"):
        image = image.convert("I")
    share = min(1.0, size / max(image.size))
    target = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    small = image.resize(target, Module.Resampling.LANCZOS, reducing_gap=2.0)
    small.info = {key: value for key, value in image.info.items() if key == "exif"}
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
