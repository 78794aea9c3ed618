"""The processor `image-thumbnails`: a picture in smaller sizes; of a zip of pictures each, and all on one sheet.

A thumbnail stands upright as the camera was held, is never larger than the image, and carries neither its place nor its
camera: of what an image has besides its pixels only the colour profile is kept. How it is decoded is
image_decoding.py's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from pydantic import Field, field_validator

from headway.shared.errors import BadInput
from headway.shared.tasks.processors import Job, Options, processor
from headway.worker.processors.archive_members import Member, zip_members
from headway.worker.processors.image_decoding import decode, scaled
from headway.worker.processors.result_names import Names, plain_name, stem

if TYPE_CHECKING:
    from PIL.Image import Image

CONTENT_TYPES: Final = {"webp": "image/webp", "png": "image/png", "jpeg": "image/jpeg"}
QUALITY: Final = 85

#: Of a zip. More of them are no sheet that anybody looks at.
MOST_PICTURES: Final = 400
#: A sheet's pictures, in pixels with the gap around them.
CELL_PIXELS, GAP_PIXELS = 160, 8
SHEET: Final = "contact-sheet"


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
    description="Smaller copies of an image as WebP, PNG or JPEG; of a zip of images each, and a contact sheet",
    accepts=("image/*", "application/zip"),
    options=ImageThumbnailsOptions,
    # As measured on a photo of 12 megapixels.
    phases={"Decoding": 4, "Scaling": 1},
    preload=(
        *(f"PIL.{name}ImagePlugin" for name in ("Png", "Jpeg", "Gif", "WebP", "Bmp", "Tiff", "Ico", "Ppm")),
        "pillow_heif",
    ),
)
def image_thumbnails(job: Job) -> dict[str, Any]:
    """Each thumbnail is a result file named by its size, `cat-128.webp`. Raises BadInput for what is no image.

    Summary: `width` and `height`, upright, `format` and `mode` of the image, and `thumbnails`, a list of `file`,
    `size`, `width` and `height`, the smallest first; `notes`, if there is anything to tell. Of a zip: `pictures`, how
    many; `thumbnails`, with the `picture` each is of; `contact_sheet`, a result file; `left_out`, how many members are
    no pictures or cannot be decoded, with a note for each of the first.
    """
    options: ImageThumbnailsOptions = job.options
    with job.open_input() as file:
        if file.read(4) == b"PK\3\4":
            return _zip(job, file)
        file.seek(0)
        job.phase("Decoding", unit="bytes")
        picture = decode(file, options.sizes[-1], job.memory_bytes, alpha=options.format != "jpeg")
    for note in picture.notes:
        job.log(note, "warning")
    job.progress_to(job.size_bytes, job.size_bytes)
    job.phase("Scaling", total=len(options.sizes), unit="thumbnails")
    thumbnails = []
    for size in options.sizes:
        name = f"{stem(job.filename, 'image')}-{size}{_ending(options)}"
        thumbnails.append(_write(job, picture.image, picture.profile, size, name))
        job.advance()
    summary = {"width": picture.width, "height": picture.height, "format": picture.format, "mode": picture.mode}
    return {**summary, "thumbnails": thumbnails, **({"notes": list(picture.notes)} if picture.notes else {})}


def _ending(options: ImageThumbnailsOptions) -> str:
    return f".{options.format.replace('jpeg', 'jpg')}"


def _write(job: Job, image: Image, profile: bytes | None, size: int, name: str) -> dict[str, Any]:
    options: ImageThumbnailsOptions = job.options
    small = scaled(image, size)
    with job.create_output(name, CONTENT_TYPES[options.format]) as output:
        small.save(output, options.format, quality=QUALITY, exif=b"", icc_profile=profile)
    return {"file": name, "size": size, "width": small.width, "height": small.height}


def _zip(job: Job, raw: BinaryIO) -> dict[str, Any]:
    options: ImageThumbnailsOptions = job.options
    limits = {"max_files": 10_000, "max_bytes": max(16 * 1024 * 1024, 100 * job.size_bytes)}
    members = zip_members(Path(job.input_path), raw, memory_bytes=job.memory_bytes, **limits)
    most_bytes = job.memory_bytes // 4
    job.phase("Decoding", total=job.size_bytes, unit="bytes")
    names, sheet = Names(f"{SHEET}{_ending(options)}"), _Sheet()
    thumbnails, notes, left_out = list[dict[str, Any]](), list[str](), 0
    for member in members:
        if member.folder:
            continue
        why = str(member.left_out) if member.left_out else None
        try:
            if why is None:
                data = _whole(member, most_bytes)
                picture = decode(io.BytesIO(data), options.sizes[-1], job.memory_bytes, alpha=options.format != "jpeg")
        except BadInput as error:
            why = str(error)
        job.progress_to(raw.tell())
        if why is not None:
            left_out += 1
            if len(notes) < 10:
                notes.append(f"Left out {member.name[:100]!r}: {why}")
            continue
        if sheet.pictures == MOST_PICTURES:
            raise BadInput(f"The zip has more than {MOST_PICTURES} pictures. Send it in several parts.")
        notes += [f"{member.name[:100]!r}: {note}" for note in picture.notes if len(notes) < 10]
        base = names.give(f"{stem(plain_name(member.name), 'image')}{_ending(options)}")
        for size in options.sizes:
            name = names.give(f"{PurePosixPath(base).stem}-{size}{_ending(options)}")
            found = _write(job, picture.image, picture.profile, size, name)
            thumbnails.append({"picture": member.name[:200], **found})
        sheet.add(picture.image)
    if not sheet.pictures:
        raise BadInput(f"There is no picture in the zip that can be decoded. {notes[0] if notes else 'It is empty.'}")
    job.phase("Scaling", total=1, unit="sheets")
    name = f"{SHEET}{_ending(options)}"
    with job.create_output(name, CONTENT_TYPES[options.format]) as output:
        sheet.image().save(output, options.format, quality=QUALITY)
    job.advance()
    for note in notes:
        job.log(note, "warning")
    more = {"pictures": sheet.pictures, "left_out": left_out, "contact_sheet": name, "notes": notes}
    return {**more, "thumbnails": thumbnails}


def _whole(member: Member, most_bytes: int) -> bytes:
    return b"".join(_at_most(member.pieces, most_bytes))


def _at_most(pieces: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    left = most_bytes
    for piece in pieces:
        if (left := left - len(piece)) < 0:
            raise BadInput(f"It has more than {most_bytes:,} bytes. Send it alone.")
        yield piece


class _Sheet:
    """All pictures beside each other, in their order."""

    def __init__(self) -> None:
        self._small = list["Image"]()

    @property
    def pictures(self) -> int:
        return len(self._small)

    def add(self, image: Image) -> None:
        self._small.append(scaled(image, CELL_PIXELS))

    def image(self) -> Image:
        from PIL import Image as Module

        columns = min(10, math.ceil(math.sqrt(self.pictures)))
        rows = math.ceil(self.pictures / columns)
        step = CELL_PIXELS + GAP_PIXELS
        sheet = Module.new("RGB", (columns * step + GAP_PIXELS, rows * step + GAP_PIXELS), "white")
        for place, small in enumerate(self._small):
            left = GAP_PIXELS + place % columns * step + (CELL_PIXELS - small.width) // 2
            top = GAP_PIXELS + place // columns * step + (CELL_PIXELS - small.height) // 2
            sheet.paste(small, (left, top), small if small.mode == "RGBA" else None)
        return sheet
