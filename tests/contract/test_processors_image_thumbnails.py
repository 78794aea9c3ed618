"""The processor `image-thumbnails`: upright, small, and never decoded when there is no memory for it."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from headway.shared.errors import BadInput, InvalidRequest
from headway.shared.tasks.registry import load_registry
from headway.worker.processors.image_thumbnails import image_thumbnails
from tests.unit.recording_job import RecordingJob

PROCESSOR = load_registry().get("image-thumbnails")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def job_for(folder: Path, data: bytes, **options: Any) -> RecordingJob:
    job = RecordingJob(folder, data, processor=PROCESSOR, options=options, memory_bytes=256 * 1024**2)
    job.filename = "cat.jpg"
    return job


def only(job: RecordingJob) -> Image.Image:
    (path,) = job.outputs.iterdir()
    with Image.open(path) as image:
        image.load()
        return image


def test_a_photo_becomes_one_thumbnail_a_size_and_is_never_enlarged(tmp_path: Path) -> None:
    job = job_for(tmp_path, saved(Image.new("RGB", (800, 400), RED), "PNG"), sizes=[1000, 100, 100, 10])
    assert image_thumbnails(job) == {
        "width": 800,
        "height": 400,
        "format": "PNG",
        "mode": "RGB",
        "thumbnails": [
            {"file": "cat-10.webp", "size": 10, "width": 10, "height": 5},
            {"file": "cat-100.webp", "size": 100, "width": 100, "height": 50},
            {"file": "cat-1000.webp", "size": 1000, "width": 800, "height": 400},
        ],
    }
    assert job.phases == list(PROCESSOR.phases)
    assert job.counts[-1] == ("Scaling", 3, 3)
    for size in (10, 100, 1000):
        with Image.open(job.outputs / f"cat-{size}.webp") as image:
            assert image.format == "WEBP"


@pytest.mark.parametrize("kind", ["webp", "png", "jpeg"])
def test_what_is_clear_stays_clear_where_the_format_can(tmp_path: Path, kind: str) -> None:
    job = job_for(tmp_path, saved(Image.new("RGBA", (50, 50), (255, 0, 0, 0)), "PNG"), sizes=[20], format=kind)
    image_thumbnails(job)
    corner = only(job).convert("RGBA").getpixel((0, 0))
    assert isinstance(corner, tuple)
    assert corner[3] == (255 if kind == "jpeg" else 0)
    assert kind != "jpeg" or corner == (255, 255, 255, 255)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_stands_as_the_camera_was_held(tmp_path: Path, turn: int) -> None:
    image = Image.new("RGB", (60, 30), RED)
    image.paste(BLUE, (30, 0, 60, 30))
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "A camera"
    job = job_for(tmp_path, saved(image, "JPEG", exif=exif, quality=95), sizes=[30], format="png")
    summary = image_thumbnails(job) or {}
    upright = (30, 60) if turn >= 5 else (60, 30)
    assert (summary["width"], summary["height"]) == upright
    small = only(job)
    assert small.size == (upright[0] // 2, upright[1] // 2)
    assert not small.getexif()
    # Red is on the left, or where a turn has put the left.
    place = {1: (1, 1), 2: (28, 1), 3: (28, 13), 4: (1, 13), 5: (1, 1), 6: (1, 1), 7: (13, 28), 8: (13, 28)}[turn]
    pixel = small.getpixel(place)
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200 > 60 > pixel[2]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr"])
def test_every_way_to_keep_a_pixel_gives_the_picture(tmp_path: Path, mode: str) -> None:
    image = Image.linear_gradient("L")  # black above, white below
    plain = mode in ("L", "I", "F", "I;16")
    image = image.convert(mode) if plain else image.convert("RGB").convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "TIFF" if mode in ("F", "I") else "PNG"
    job = job_for(tmp_path, saved(image, kind), sizes=[64], format="png")
    image_thumbnails(job)
    small = only(job).convert("L")
    above, below = small.getpixel((32, 2)), small.getpixel((32, 61))
    assert isinstance(above, int | float)
    assert isinstance(below, int | float)
    assert above < 40
    assert below > 215


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in (RED, BLUE)]
    for kind in ("GIF", "PNG", "WEBP"):
        (folder := tmp_path / kind).mkdir()
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
        job = job_for(folder, data, sizes=[10], format="png")
        image_thumbnails(job)
        pixel = only(job).convert("RGB").getpixel((5, 5))
        assert isinstance(pixel, tuple)
        assert pixel[0] > 200 > 60 > pixel[2]


def test_a_colour_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    job = job_for(tmp_path, saved(Image.new("RGB", (40, 40), RED), "PNG", icc_profile=profile), sizes=[10])
    image_thumbnails(job)
    assert only(job).info["icc_profile"] == profile


def test_a_jpeg_too_large_to_decode_whole_is_decoded_small(tmp_path: Path) -> None:
    data = saved(Image.new("L", (12_000, 6000), 128).convert("RGB"), "JPEG")
    job = job_for(tmp_path, data, sizes=[100])
    assert image_thumbnails(job)
    assert only(job).size == (100, 50)


@pytest.mark.parametrize("options", [{"sizes": []}, {"sizes": [0]}, {"sizes": [5000]}, {"format": "gif"}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        PROCESSOR.parse_options(options)


def test_what_is_no_image_or_too_large_says_what_to_do(tmp_path: Path) -> None:
    for number, (data, word) in enumerate(
        [
            (b"hello", "Send one of: PNG"),
            (b"", "Send one of: PNG"),
            (saved(Image.new("RGB", (99, 99)), "PNG")[:60], "cut short"),
            (saved(Image.new("1", (30_000, 15_000)), "PNG"), "megapixels"),
        ]
    ):
        (folder := tmp_path / str(number)).mkdir()
        with pytest.raises(BadInput, match=word):
            image_thumbnails(job_for(folder, data))


# What people really have.


def _with_app1(jpeg: bytes, payload: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def _two_colours() -> Image.Image:
    """60 × 30, red on the left."""
    image = Image.new("RGB", (60, 30), RED)
    image.paste(BLUE, (30, 0, 60, 30))
    return image


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0*" + bytes(99),
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 200,
        b"Exif\0\0nonsense",
        b"Exif\0\0",
    ],
)
def test_broken_exif_is_no_broken_picture(tmp_path: Path, exif: bytes) -> None:
    job = job_for(tmp_path, _with_app1(saved(_two_colours(), "JPEG"), exif), sizes=[30])
    summary = image_thumbnails(job) or {}
    assert (summary["width"], summary["height"], only(job).size) == (60, 30, (30, 15))


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_xmp_says_how_the_camera_was_held_where_exif_does_not(tmp_path: Path, turn: int) -> None:
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'
    data = _with_app1(saved(_two_colours(), "JPEG"), b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode())
    job = job_for(tmp_path, data, sizes=[60], format="png")
    summary = image_thumbnails(job) or {}
    upright = (60, 30) if turn == 3 else (30, 60)
    assert (summary["width"], summary["height"]) == only(job).size == upright
    red = only(job).getpixel({3: (50, 15), 6: (15, 10), 8: (15, 50)}[turn])
    assert isinstance(red, tuple)
    assert red[0] > 200 > 60 > red[2]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_turned_once_and_its_sides_are_the_upright_ones(tmp_path: Path, turn: int, compression: str) -> None:
    data = saved(_two_colours(), "TIFF", tiffinfo={0x0112: turn}, compression=compression)
    job = job_for(tmp_path, data, sizes=[60], format="png")
    summary = image_thumbnails(job) or {}
    upright = (30, 60) if turn >= 5 else (60, 30)
    assert (summary["width"], summary["height"]) == only(job).size == upright


def test_a_prints_colours_are_shown_by_its_profile(tmp_path: Path) -> None:
    image = _two_colours().convert("CMYK")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # not a printer's: it does not fit
    job = job_for(tmp_path, saved(image, "TIFF", icc_profile=profile), sizes=[60], format="png")
    summary = image_thumbnails(job) or {}
    assert "colour profile of the picture is broken" in summary["notes"][0]
    red = only(job).getpixel((10, 10))
    assert isinstance(red, tuple)
    assert red[0] > 200 > 60 > red[2]


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_what_phones_take_is_a_picture(tmp_path: Path, kind: str) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    job = job_for(tmp_path, saved(_two_colours(), kind, quality=90), sizes=[30], format="png")
    summary = image_thumbnails(job) or {}
    assert (summary["format"], summary["width"], summary["height"]) == (kind, 60, 30)
    red = only(job).getpixel((5, 5))
    assert isinstance(red, tuple)
    assert red[0] > 200 > 60 > red[2]


@pytest.mark.parametrize("head", ["", '<?xml version="1.0"?>\n', "\ufeff<!-- drawn -->\n"])
def test_a_drawing_is_refused_with_a_word(tmp_path: Path, head: str) -> None:
    data = f'{head}<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'.encode()
    with pytest.raises(BadInput, match=r"This is an SVG.+PNG"):
        image_thumbnails(job_for(tmp_path, data))


def test_a_zip_of_pictures_gives_a_thumbnail_each_and_a_contact_sheet(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, colour in (("a/one.jpg", RED), ("b/one.jpg", BLUE), ("two.png", RED)):
            archive.writestr(name, saved(Image.new("RGB", (60, 30), colour), "JPEG"))
        archive.writestr("__MACOSX/._two.png", b"x")
        archive.writestr("notes.txt", b"hello")
    job = job_for(tmp_path, out.getvalue(), sizes=[20, 40], format="png")
    summary = image_thumbnails(job) or {}
    assert (summary["pictures"], summary["left_out"], len(summary["thumbnails"])) == (3, 2, 6)
    assert {path.name for path in job.outputs.iterdir()} == {
        summary["contact_sheet"],
        *(one["file"] for one in summary["thumbnails"]),
    }
    assert {"a__one-20.png", "b__one-40.png", "two-20.png"} <= {one["file"] for one in summary["thumbnails"]}
    assert any("notes.txt" in note for note in summary["notes"])
    with Image.open(job.outputs / summary["contact_sheet"]) as sheet:
        colours = {sheet.convert("RGB").getpixel((place % 2 * 168 + 88, place // 2 * 168 + 88)) for place in range(3)}
    assert len(colours) == 2


def test_a_zip_without_a_picture_says_so(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("notes.txt", b"hello")
    with pytest.raises(BadInput, match="no picture in the zip"):
        image_thumbnails(job_for(tmp_path, out.getvalue()))
