"""Files made to crash, hang or exhaust: each is refused at once, in a short sentence."""

import json
import pickle
import re
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import reports
import torch
from limits import limits
from mutations import nested
from runs import SMALL

from spem.compare.study import load_study
from spem.data.images import prepare_image
from spem.export.network import load_network
from spem.export.weights import load_weights
from spem.models import create_model
from spem.report.tables import read_contents
from spem.train.checkpoint import save_checkpoint
from spem.train.fitting import fit
from spem.train.recipe_files import load_recipe
from spem.train.resolving import resolve

MARKER = "marker"
CODE = f"__import__('pathlib').Path({MARKER!r}).touch()"


class Code:
    def __reduce__(self):
        return (eval, (CODE,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = replace(SMALL, model="resnet8", gate="spem", epochs=1)
    return fit(recipe, out=tmp_path_factory.mktemp("hostile") / "run").folder


def write_zip(path, files, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_png(path, width, height):
    """A picture whose header declares a size, and whose few bytes decode to black pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


# Of a run's folder: changes of config.json.
CONFIGS = {
    "a depth of 10^8": {"model": "resnet99999998"},
    "a depth of 10^4": {"model": "resnet20000", "block": "basic"},
    "a DenseNet of depth 10^6": {"model": "densenet1000000"},
    "a depth of 4,000 digits": {"model": "resnet" + "9" * 4000},
    "10^9 classes": {"num_classes": 10**9},
    "10^5 classes": {"num_classes": 10**5, "classes": [str(i) for i in range(10**5)]},
    "10^7 names of classes": {"classes": ["a"] * 10**7},
    "10^9 channels": {"in_channels": 10**9},
    "images of 10^9 pixels a side": {"image_size": [10**9, 10**9]},
    "one side": {"image_size": [8]},
    "no mean": {"mean": []},
    "a mean that is not a number": {"mean": [float("nan")]},
    "a mean of 10^400": {"mean": [10**400]},
    "a std of zero": {"std": [0]},
    "a reduction of 10^12": {"gate": "se", "gate_options": {"reduction": 10**12}},
    "an order of 10^9": {"gate": "lsas", "gate_options": {"order": 10**9}},
    "10^9 branches": {"gate": "hpda", "gate_options": {"branches": 10**9}},
    "10^8 groups": {"gate": "sge", "gate_options": {"groups": 10**8}},
    "a kernel of 10^9": {"gate": "eca", "gate_options": {"kernel_size": 10**9 + 1}},
    "a DCT of 10^6": {"gate": "fcanet", "gate_options": {"dct_size": 10**6}},
    "nested options": {"gate_options": {"a": nested(500)}},
    "a text of 10^7 characters": {"model": "x" * 10**7},
    "a mask of 10^7 places": {"mask": [1] * 10**7},
    "a number for a name": {"gate": 7},
    "a name with a zero byte": {"data": "a\0b"},
}
# What a file of another name holds.
FILES = {
    ("config.json", "nested lists"): "[" * 10**6,
    ("config.json", "100 MB of blanks"): " " * 10**8,
    ("config.json", "a list"): "[1]",
    ("config.json", "no UTF-8"): b"\xff\xfe{}",
    ("recipe.yaml", "aliases"): "a: &a [x,x,x,x,x,x,x,x]\n"
    + "".join(f"b{i}: &b{i} [*a,*a,*a,*a]\n" for i in range(30)),
    ("recipe.yaml", "nested lists"): "model: " + "[" * 50_000,
    ("recipe.yaml", "nested mappings"): "\n".join("  " * i + "a:" for i in range(500)),
    ("recipe.yaml", "a tag of Python"): f"model: !!python/object/apply:eval [{CODE!r}]",
    ("recipe.yaml", "a rate of 10^400"): "lr: 1" + "0" * 400,
    ("recipe.yaml", "a rate of 10^5000"): "lr: 1" + "0" * 5000,
    ("recipe.yaml", "an infinite rate"): "lr: .inf",
    ("recipe.yaml", "100,000 threads"): "threads: 100000",
    ("recipe.yaml", "10^9 replicas"): "replicas: 1000000000",
    ("recipe.yaml", "10^12 epochs"): "epochs: 1000000000000",
    ("recipe.yaml", "a crop of 10^9"): "crop: 1000000000",
    ("recipe.yaml", "10^6 milestones"): "milestones: [" + "1," * 400_000 + "1]",
    ("study.yaml", "10^9 seeds"): "seeds: 1000000000",
    ("study.yaml", "a grid of 10^9 runs"): "gates:\n  gate: spem\n  cross:\n"
    + "".join(f"    k{i}: [1,2,3,4,5,6,7,8]\n" for i in range(10)),
    ("study.yaml", "a tag of Python"): f"title: !!python/object/apply:eval [{CODE!r}]",
}
RECORDS = {
    "no summary": lambda r: r.pop("summary"),
    "a summary that is a list": lambda r: r.update(summary=[1]),
    "an accuracy that is a text": lambda r: r["summary"].update(final_test_top1="high"),
    "an accuracy of 10^400": lambda r: r["summary"].update(final_test_top1=10**400),
    "an accuracy of 7": lambda r: r["summary"].update(best_test_top1=7),
    "no parameters": lambda r: r["summary"].update(parameters=None),
    "a history that is a list": lambda r: r.update(history=[]),
    "columns of unlike lengths": lambda r: r["history"]["test_top1"].pop(),
    "a column that is a text": lambda r: r["history"].update(test_top1="0.5"),
    "a recipe that is a text": lambda r: r.update(recipe="paper"),
    "a recipe without a model": lambda r: r["recipe"].pop("model"),
    "nested options": lambda r: r["recipe"].update(gate_options={"a": nested(400)}),
    "a key that is a list": lambda r: r.update(key=[]),
    "a label of 10^6 letters": lambda r: r.update(gate="x" * 10**6),
    "neither result nor error": lambda r: r.update(summary=None, history=None),
    "a seed of a half": lambda r: r.update(seed=0.5),
}


def write_checkpoint_state(change):
    def write(folder):
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        change(state)
        save_checkpoint(folder / "checkpoint.pt", state)

    return write


LARGE = "a file of 2 GB in 2 MB"  # takes ten seconds to write
CHECKPOINTS = {
    "a pickle that runs code": lambda f: write_zip(
        f / "checkpoint.pt", {"archive/data.pkl": pickle.dumps(Code()), "archive/version": "3"}
    ),
    "a pickle without an archive": lambda f: (f / "checkpoint.pt").write_bytes(
        pickle.dumps(Code())
    ),
    LARGE: lambda f: write_zip(
        f / "checkpoint.pt", {"archive/data.pkl": bytes(2 * 10**9)}, zipfile.ZIP_DEFLATED
    ),
    "a negative step": write_checkpoint_state(lambda s: s.update(step=-1)),
    "a step of 10^18": write_checkpoint_state(lambda s: s.update(step=10**18)),
    "an epoch that is a text": write_checkpoint_state(lambda s: s.update(epoch="two")),
    "no history": write_checkpoint_state(lambda s: s.pop("history")),
    "a history of numbers": write_checkpoint_state(lambda s: s.update(history=[1])),
    "weights that are a list": write_checkpoint_state(lambda s: s.update(model=[1])),
    "a weight of another shape": write_checkpoint_state(
        lambda s: s["model"].update({"fc.weight": torch.zeros(3)})
    ),
    "momentum of another shape": write_checkpoint_state(
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(3))
    ),
    "an optimiser without groups": write_checkpoint_state(
        lambda s: s["optimizer"].update(param_groups=[])
    ),
    "a schedule of texts": write_checkpoint_state(lambda s: s["schedule"].update(last_epoch="x")),
    "metrics of another shape": write_checkpoint_state(
        lambda s: s["auxiliary"].update({key: torch.zeros(7) for key in s["auxiliary"]})
    ),
}


def header_of(size, start=0, end=4):
    text = json.dumps({"a": {"dtype": "F32", "shape": size, "data_offsets": [start, end]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


WEIGHTS = {
    "a header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a tensor of 10^15 numbers": header_of([10**15]),
    "a tensor beyond the end": header_of([10**6], 0, 4 * 10**6),
    "a negative size": header_of([-1]),
    "a nested header": struct.pack("<Q", 10**5) + b"[" * 10**5,
    "a pickle": pickle.dumps(Code()),
    "nothing": b"",
}
PICTURES = {
    "10^9 pixels": lambda path: write_png(path, 50_000, 20_000),
    "2^31 pixels a side": lambda path: write_png(path, 2**31 - 1, 2**31 - 1),
    "fewer bytes than pixels": lambda path: write_png(path, 9_000, 9_000),
    "PostScript": lambda path: path.write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n({MARKER}) (w) file\n"),
    "a picture of text": lambda path: path.write_text("/* XPM */\nstatic char * a[] = {};"),
}


def refuse(call, path):
    """Check that a call raises one short sentence, in little time and memory, and runs nothing."""
    with limits("this file"), pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    assert not isinstance(caught.value, UnicodeError)
    assert re.fullmatch(r"[^\n\r\x1b]{1,700}", str(caught.value))
    assert not Path(MARKER).exists()


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of the files of a finished run, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("checkpoint.pt", "config.json", "model.safetensors", "recipe.yaml", "metrics.csv"):
        (run / name).write_bytes((finished / name).read_bytes())
    return run


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration(folder, kind):
    content = json.loads((folder / "config.json").read_text()) | CONFIGS[kind]
    (folder / "config.json").write_text(json.dumps(content))
    refuse(lambda: load_network(folder), kind)


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_a_file_of_settings(folder, name, kind):
    content = FILES[name, kind]
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    calls = {
        "config.json": lambda: load_network(folder),
        "recipe.yaml": lambda: resolve(load_recipe(str(path))),
        "study.yaml": lambda: load_study(str(path)).plan(),
    }
    refuse(calls[name], kind)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_left_out_of_a_report_and_said(folder, kind):
    records = [reports.record(gate, 0, 0.9) for gate in ("none", "se")]
    RECORDS[kind](records[1])
    reports.write(folder, records)
    with limits("this record"):
        contents = read_contents(folder)
    assert re.match(
        r"1 line of records.jsonl is damaged and left out \(line 2: .", contents.notes[0]
    )
    assert len(contents.notes[0]) < 700


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.hard if k == LARGE else ()) for k in CHECKPOINTS],
)
def test_a_checkpoint(folder, kind):
    CHECKPOINTS[kind](folder)
    recipe = load_recipe(str(folder / "recipe.yaml"))
    refuse(lambda: fit(replace(recipe, progress=False), out=folder, resume=True), kind)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_file(folder, kind):
    (folder / "model.safetensors").write_bytes(WEIGHTS[kind])
    model = create_model("resnet8", "spem", in_channels=1)
    refuse(lambda: load_weights(model, folder), kind)
    refuse(lambda: load_network(folder), kind)


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture(folder, kind):
    path = folder / "picture.png"
    PICTURES[kind](path)
    refuse(lambda: prepare_image(path, size=32, channels=3), kind)
