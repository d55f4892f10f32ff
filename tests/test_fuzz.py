"""Copies of real files of every kind, most damaged: each is read, or refused in one sentence."""

import io
import json
import pickle
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
import reports
import torch
from limits import limits
from mutations import dump, mutate_bytes, mutate_value
from PIL import Image
from proof import cases, numbers_of
from runs import SMALL

from spem import load_backbone
from spem.compare.study import load_study
from spem.data import cifar
from spem.data.images import prepare_image
from spem.export.network import load_network
from spem.export.weights import load_weights, start_from
from spem.report.tables import read_contents
from spem.report.writer import render
from spem.train.checkpoint import save_checkpoint
from spem.train.devices import create_fabric
from spem.train.fitting import fit
from spem.train.recipe_files import load_recipe
from spem.train.resolving import resolve
from spem.train.run import Run
from spem.train.setup import prepare

TOTAL = 100_000
READERS = {}


def reader(few):
    """Return a decorator that makes a function a reader to test, in `few` cases by `make test`."""

    def enter(function):
        READERS[function.__name__] = (function, few)
        return function

    return enter


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of a small network."""
    recipe = replace(SMALL, model="resnet8", gate="spem", epochs=1, schedule="constant")
    return fit(recipe, out=tmp_path_factory.mktemp("fuzz") / "run").folder


class Place:
    """A folder for the damaged file of a case, and the real files that it is made of."""

    def __init__(self, run, folder):
        self.run, self.folder = run, folder
        self.images = make_images()
        self.cifar = make_cifar()
        self.comparison = reports.write(
            folder / "comparison",
            reports.comparison(seeds=2, groups=["cifar10"]),
            costs=[reports.cost("none", 300), reports.cost("spem", 280)],
            study={"title": "A study", "question": "Which?", "method": ["spem"], "planned": 8},
        )
        self.records = (self.comparison / "records.jsonl").read_text().splitlines()
        self.weights = (run / "model.safetensors").read_bytes()
        self.checkpoint = (run / "checkpoint.pt").read_bytes()
        self.recipe, self.config = (
            (run / "recipe.yaml").read_text(),
            (run / "config.json").read_text(),
        )
        self.state = torch.load(run / "checkpoint.pt", weights_only=True)
        self.model, _ = load_network(run)
        recipe = replace(load_recipe(str(run / "recipe.yaml")), epochs=2)
        self.fabric = create_fabric(recipe)
        self.job = prepare(self.fabric, resolve(recipe))

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(
            content.encode(errors="surrogatepass") if isinstance(content, str) else content
        )
        return path


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    return Place(run, tmp_path_factory.mktemp("place"))


def make_images():
    """Small pictures of every format, grey, in colour, with transparency, animated."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), np.uint8)
    found = []
    for mode, kinds in {
        "RGB": ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"),
        "L": ("PNG", "JPEG", "TIFF"),
        "RGBA": ("PNG", "WEBP", "TIFF"),
        "P": ("PNG", "GIF"),
        "1": ("PNG", "TIFF"),
        "I;16": ("PNG", "TIFF"),
    }.items():
        image = Image.fromarray(pixels).convert("RGB" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        for kind in kinds:
            several = {"save_all": True, "append_images": [image] * 2} if kind == "GIF" else {}
            image.save(file := io.BytesIO(), kind, **several)
            found.append(file.getvalue())
    return found


def make_cifar():
    """Files of CIFAR-10's layout with ten rows, of three protocols."""
    rows = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)
    content = {b"batch_label": b"one of one", b"labels": list(range(10)), b"data": rows}
    content[b"filenames"] = [b"a_%d.png" % number for number in range(10)]
    return [pickle.dumps(content, protocol) for protocol in (1, 2, 4)]


@reader(100)
def cifar_pickle(place, draw):
    data = mutate_bytes(draw, draw.choice(place.cifar), draw.choice(place.cifar))
    layout = cifar.LAYOUTS["cifar10"]
    return lambda: cifar._batch(layout, place.folder / "data_batch_1", data, 10)


@reader(100)
def picture(place, draw):
    data = mutate_bytes(draw, draw.choice(place.images), draw.choice(place.images))
    path = place.write("picture.png", data)
    return lambda: prepare_image(path, size=8, channels=draw.choice((1, 3)))


@reader(100)
def config(place, draw):
    text = mutate_text(draw, place.config, json.loads(place.config), dump)
    place.write("model.safetensors", place.weights)
    place.write("config.json", text)
    return lambda: load_network(place.folder)


@reader(50)
def recipe(place, draw):
    settings = load_yaml(place.recipe)
    path = place.write("recipe.yaml", mutate_text(draw, place.recipe, settings, dump))
    return lambda: resolve(load_recipe(str(path)))


STUDY = {
    "title": "A study",
    "question": "Which gate?",
    "config": "digits",
    "recipe": {"epochs": 3},
    "gates": [
        "none",
        {"gate": "spem", "cross": {"alpha": [0.1, 0.2]}},
        {"gate": "se", "label": "s"},
    ],
    "models": ["resnet8", {"model": "resnet14", "lr": 0.05}],
    "data": "digits",
    "overrides": [{}, {"label": "slow", "lr": 0.01}],
    "seeds": 2,
    "baseline": "none",
    "method": ["spem alpha=0.1"],
    "small": {"seeds": 1},
}


@reader(20)
def study(place, draw):
    path = place.write("study.yaml", mutate_text(draw, dump(STUDY), STUDY, dump))
    return lambda: load_study(str(path), small=draw.random() < 0.2).plan()


@reader(20)
def record(place, draw):
    names = ("records.jsonl",) * 6 + ("costs.jsonl", "study.yaml")
    name = draw.choice(names)
    texts = place.records if name == "records.jsonl" else [(place.comparison / name).read_text()]
    lines = list(texts)
    at = draw.randrange(len(lines))
    whole = load_yaml(lines[at]) if name == "study.yaml" else json.loads(lines[at].splitlines()[0])
    lines[at] = mutate_text(draw, lines[at], whole, dump)
    folder = place.folder / "damaged"
    folder.mkdir(exist_ok=True)
    for each in ("records.jsonl", "costs.jsonl", "study.yaml"):
        text = "\n".join(lines) + "\n" if each == name else (place.comparison / each).read_text()
        (folder / each).write_text(text, errors="surrogatepass")
    return lambda: render(contents := read_contents(folder), [[] for _ in contents.groups], "md")


@reader(20)
def checkpoint(place, draw):
    path = place.folder / "checkpoint.pt"
    if draw.random() < 0.3:
        path.write_bytes(mutate_bytes(draw, place.checkpoint, place.weights))
    else:  # with a right checksum
        save_checkpoint(path, mutate_value(draw, place.state))

    def restore():
        run = Run(place.fabric, place.job, place.folder)
        if not run.finished:
            run.take_step()

    return restore


@reader(50)
def state_dict(place, draw):
    if draw.random() < 0.3:
        state = mutate_value(draw, {**place.model.state_dict()})
        return lambda: load_backbone(place.model, state)
    path = place.write("other.safetensors", mutate_bytes(draw, place.weights, place.checkpoint))
    load = draw.choice((load_weights, start_from))
    return lambda: load(place.model, path)


def mutate_text(draw, text, value, dump):
    """Return a file's text with changed bytes, or with changed values."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, text.encode(), b"'[{&*!!:\n- \t#>|\\").decode(errors="replace")
    return dump(mutate_value(draw, value))


def load_yaml(text):
    import yaml

    return yaml.safe_load(text)


PARTS = [
    pytest.param(name, *part.values, marks=part.marks, id=f"{name}-{part.id}")
    for name, (_, few) in READERS.items()
    for part in cases(TOTAL, few)
]


@pytest.mark.parametrize(("name", "numbers"), PARTS)
def test_a_damaged_file_is_read_or_refused(name, numbers, place, monkeypatch):
    monkeypatch.chdir(place.folder)
    make, _ = READERS[name]
    read = 0
    for number in numbers:
        call = make(place, numbers_of(number))
        with limits(f"{name} {number}"):
            error = attempt(call)
        if error is None:
            read += 1
            continue
        if not isinstance(error, ALLOWED) or isinstance(error, UnicodeError):
            raise AssertionError(f"{name} {number}: {error!r}") from error
        assert re.fullmatch(r"[^\n\r\x1b]{1,700}", str(error)), f"{name} {number}: {error}"
    assert read  # some of the copies are whole


def attempt(call):
    """Return the exception that a call raises, or None."""
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # Pillow's, of odd files
            call()
    except Exception as error:
        return error


ALLOWED = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
