"""The processor `image-thumbnails`: upright, small, and never decoded when there is no memory for it."""

from __future__ import annotations

import io
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
