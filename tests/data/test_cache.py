"""Decoded images are kept by the content of their files, and never taken for others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures import draw_noise
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spem.cli import main
from spem.cli.trained import Trained
from spem.data import cache
from spem.data.dataset import load_dataset
from spem.train.recipe_files import load_recipe
from spem.train.replicas import Replicas


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Two classes of eight noisy pictures, enough to be kept."""
    monkeypatch.setattr(cache, "_WORTH", 16)
    noise = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        draw_noise(tmp_path / "photographs" / name, 8, (30, 20), noise)
    return tmp_path / "photographs"


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded, as they are."""
    files, read = [], cache.open_image
    monkeypatch.setattr(cache, "open_image", lambda file: [files.append(file), read(file)][1])
    return files


def load(folder, kept=None, **options):
    return load_dataset(str(folder), image_size=16, cache=kept, **options)


def equal(first, second):
    splits = ("train", "validation", "test")
    return (first.folder.sizes, first.classes) == (second.folder.sizes, second.classes) and all(
        torch.equal(a, b)
        for name in splits
        for a, b in zip(getattr(first, name), getattr(second, name), strict=True)
    )


def test_images_are_decoded_once_whatever_the_split(photographs, decoded, tmp_path):
    plain, first = load(photographs), load(photographs, tmp_path / "kept")
    assert len(decoded) == 32
    again = load(photographs, tmp_path / "kept")
    assert len(decoded) == 32
    assert equal(plain, first)
    assert equal(plain, again)
    other = load(photographs, tmp_path / "kept", seed=1)
    assert len(decoded) == 32
    assert equal(other, load(photographs, seed=1))


def test_a_changed_file_and_another_form_are_decoded_again(photographs, decoded, tmp_path):
    load(photographs, tmp_path / "kept")
    changed = photographs / "cat/3.png"
    before = changed.stat()
    Image.new("RGB", (30, 20), (7, 7, 7)).save(changed)
    changed.touch()
    decoded.clear()
    assert equal(load(photographs, tmp_path / "kept"), load(photographs))
    assert decoded[0] == changed
    assert len(decoded) == 1 + 16
    assert before
    (photographs / "dog/0.png").rename(photographs / "dog/9.png")  # the same content
    decoded.clear()
    load(photographs, tmp_path / "kept")
    load(photographs, tmp_path / "kept", interpolation="bicubic")
    assert len(decoded) == 16
    assert len([*(tmp_path / "kept").iterdir()]) == 2


def test_what_is_damaged_is_decoded_again(photographs, decoded, tmp_path, caplog):
    plain = load(photographs)
    load(photographs, tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    images = load_file(file)
    key = next(iter(images))
    images[key] = 255 - images[key]
    save_file(images, file, facts)
    decoded.clear()
    assert equal(load(photographs, tmp_path / "kept"), plain)
    assert len(decoded) == 1
    assert not caplog.messages
    for content in (b"", b"no safetensors", file.read_bytes()[:1000]):
        file.write_bytes(content)
        decoded.clear()
        assert equal(load(photographs, tmp_path / "kept"), plain)
        assert len(decoded) == 16
    assert all("decoded again" in message for message in caplog.messages)
    wrong = {key: torch.zeros(3, 8, 8, dtype=torch.uint8)}
    save_file(wrong, file, {"facts": json.dumps({key: [8, 8, 0]})})
    assert equal(load(photographs, tmp_path / "kept"), plain)


def test_a_picture_that_cannot_be_read_is_never_kept(photographs, tmp_path):
    (photographs / "cat/3.png").write_bytes(b"no picture")
    for _ in range(2):
        found = load(photographs, tmp_path / "kept", on_bad_image="list")
        assert [sentence for sentence in found.folder.unreadable if "3.png" in sentence]
    with pytest.raises(ValueError, match=r"3.png cannot be read as an image"):
        load(photographs, tmp_path / "kept")


def test_a_link_to_itself_is_an_image_that_cannot_be_read(photographs, tmp_path):
    (photographs / "cat" / "loop.png").symlink_to("loop.png")
    for kept in (None, tmp_path):
        with pytest.raises(ValueError, match=r"loop\.png"):
            load(photographs, kept)
        assert "loop.png" in load(photographs, kept, on_bad_image="list").folder.unreadable[0]


def test_another_way_to_prepare_images_decodes_them_again(
    photographs, decoded, tmp_path, monkeypatch
):
    load(photographs, tmp_path)
    other = tmp_path / "other.py"
    other.write_bytes(Path(cache.preparation.__file__).read_bytes() + b"# changed\n")
    monkeypatch.setattr(cache.preparation, "__file__", str(other))
    load(photographs, tmp_path)
    assert len(decoded) == 32


def test_a_place_that_cannot_be_written_is_said_and_few_images_are_not_kept(
    photographs, tmp_path, caplog, monkeypatch
):
    (tmp_path / "file").touch()
    assert equal(load(photographs, tmp_path / "file"), load(photographs))
    assert "the decoded images are not kept for the next run" in caplog.text
    monkeypatch.setattr(cache, "_WORTH", 17)
    load(photographs, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_commands_keep_images_beside_the_run(photographs, decoded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(photographs), "--model", "resnet8", "--epochs", "1", "--batch-size", "8"]
    assert main(["train", *words, "--no-progress", "--out", "all/run"]) == 0
    assert [path.name for path in (tmp_path / "all").iterdir()].count(cache.CACHE) == 1
    assert len(decoded) == 16
    Trained("all/run").load_data()
    recipe = load_recipe("all/run/recipe.yaml", seed=5)
    Replicas(replace(recipe, replicas=2), None, Path("all", cache.CACHE))
    assert len(decoded) == 16
