import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from spem.data.images import prepare_image


@pytest.mark.parametrize(("size", "centre"), [((90, 30), (1, 0)), ((30, 90), (0, 1))])
def test_an_image_is_resized_by_its_shorter_side_and_cut_in_the_middle(tmp_path, size, centre):
    noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    image.save(tmp_path / "x.png")
    for side in (10, 30, 60):
        scaled = image.resize([length * side // 30 for length in size], Image.Resampling.BILINEAR)
        left, top = (side * steps for steps in centre)
        expected = np.array(scaled.crop((left, top, left + side, top + side)), dtype=int)
        for source in (tmp_path / "x.png", str(tmp_path / "x.png"), image):
            found = prepare_image(source, size=side, channels=3)
            assert found.dtype == torch.uint8
            # One grey level: Pillow rounds between its two passes, whose order depends on the box.
            assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_an_image_in_grey_and_of_two_sides():
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    assert prepare_image(image, size=(8, 12), channels=1).shape == (1, 8, 12)
    assert prepare_image(image, size=8, channels=1).unique().tolist() == [255]
    with pytest.raises(ValueError, match="channels is 2"):
        prepare_image(image, size=8, channels=2)


@pytest.mark.parametrize("kind", [("uint16", 257), (">u2", 257), ("int32", 257), ("int32", 1)])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, kind):
    ramp = np.arange(256).reshape(16, 16)
    image = Image.fromarray((ramp * kind[1]).astype(kind[0]))
    image.save(tmp_path / "x.tiff")
    for source, channels in ((image, 3), (tmp_path / "x.tiff", 1)):
        found = prepare_image(source, size=16, channels=channels)
        assert found.tolist() == [ramp.tolist()] * channels


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.new("F", (16, 16)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff has floating-point pixels"):
        prepare_image(tmp_path / "x.tiff", size=16, channels=1)


def test_a_photo_is_turned_upright(tmp_path):
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))
    exif = image.getexif()
    exif[0x0112] = 3  # taken upside down
    image.save(tmp_path / "x.png", exif=exif)
    found = prepare_image(tmp_path / "x.png", size=8, channels=1)
    assert found[0, :4].max() == 0
    assert found[0, 4:].min() == 255


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*x\.png"):
        prepare_image(tmp_path / "x.png", size=8, channels=3)


EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_picture_is_what_its_content_says_and_starts_no_program(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in ("a.png", "a.eps", "a.jpg"):
        (tmp_path / name).write_text(EPS)
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
            prepare_image(tmp_path / name, size=8, channels=3)
    assert not (tmp_path / "started").exists()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").rename(tmp_path / "ppm.png")
    with pytest.raises(ValueError, match=r"ppm\.png cannot be read as an image"):
        prepare_image(tmp_path / "ppm.png", size=8, channels=3)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "b.webp")
    (tmp_path / "b.webp").rename(tmp_path / "webp.jpg")  # another promised one is welcome
    assert prepare_image(tmp_path / "webp.jpg", size=8, channels=3).shape == (3, 8, 8)


def test_a_picture_is_refused_by_its_declared_size_before_it_is_decoded(tmp_path):
    Image.new("1", (9, 9)).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"30,000×30,000 pixels|exceeds limit"):
        prepare_image(tmp_path / "bomb.png", size=8, channels=3)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(90, 30), (31, 90), (40, 40)])
def test_a_ratio_cuts_the_centre_out_of_the_resized_image(size, interpolation):
    noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    method = Image.Resampling[interpolation.upper()]
    for side, ratio in ((14, 0.875), (28, 0.875), (56, 0.875), (30, 1.0), (24, 24 / 25)):
        shorter = round(side / ratio)
        scaled = image.resize([int(shorter * length / min(size)) for length in size], method)
        left, top = (round((length - side) / 2) for length in scaled.size)
        expected = np.array(scaled.crop((left, top, left + side, top + side)), dtype=int)
        options = {"interpolation": interpolation, "crop_ratio": ratio}
        found = prepare_image(image, size=side, channels=3, **options)
        assert found.permute(1, 2, 0).tolist() == expected.tolist()


def test_a_picture_of_one_line_takes_no_memory():
    found = prepare_image(Image.new("L", (30_000, 1), 7), size=224, channels=1, crop_ratio=0.875)
    assert found.unique().tolist() == [7]
