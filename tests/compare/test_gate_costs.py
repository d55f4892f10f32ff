"""`spem bench` and `measure_gates`: what is checked first, what is measured, what is refused."""

import csv
import re
from functools import partial

import pytest
import torch
from gatings import EACH_GATE
from surgery.foreign import Net

from spem import kernels
from spem.cli import main
from spem.compare import gate_costs, measure_gates
from spem.compare.timing import RedCaseError
from spem.gates import create_gate

SMALL = {"batch": 8, "size": 16, "device": "cpu", "threads": 1, "rounds": 2}


@pytest.fixture
def eager(monkeypatch):
    """Measure with the eager kernels, and no memory, which takes processes."""
    monkeypatch.setattr(gate_costs, "fastest_kernels", lambda device: "eager")
    monkeypatch.setattr("spem.compare.costs.measure_apart", lambda *_: 2**20)


def test_costs_stand_beside_those_of_the_plain_network(eager):
    plain, again, se = measure_gates("resnet8", ["se"], **SMALL)
    assert [row["gate"] for row in (plain, again, se)] == ["none", "none again", "se"]
    assert plain["train_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert again["train_ratio"]["median"] != 1
    assert plain["parameters"] == again["parameters"] == 78042
    assert se["parameters"] > plain["parameters"]
    assert se["macs"] > plain["macs"]
    for row in (plain, again, se):
        assert 0 < row["inference"]["low"] <= row["inference"]["median"] <= row["inference"]["high"]
        assert (row["kernels"], row["rounds"], row["threads"]) == ("eager", 2, 1)


def test_a_network_of_the_user_is_imported_from_the_current_folder(
    eager, tmp_path, monkeypatch, capsys
):
    (tmp_path / "nets_of_mine.py").write_text("from surgery.foreign import Net\n")
    monkeypatch.chdir(tmp_path)
    words = ["--model", "nets_of_mine:Net", "--gates", "spem", "eca", "--at", "layer*.*.bn2"]
    words += ["--batch", "8", "--size", "16", "--device", "cpu", "--threads", "1", "--rounds", "2"]
    assert main(["bench", *words, "--out", "costs.csv"]) == 0
    printed, told = capsys.readouterr()
    steps = [line.split()[0] for line in told.splitlines()]
    assert steps == ["preparing", "checking", "checking", "timing"]
    assert "none again" in printed
    assert "×1.000" in printed
    with (tmp_path / "costs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["gate"] for row in rows] == ["none", "none again", "spem", "eca"]
    assert {row["model"] for row in rows} == {"nets_of_mine:Net"}
    assert rows[0]["parameters"] == str(sum(p.numel() for p in Net().parameters()))
    assert float(rows[3]["train_low"]) <= float(rows[3]["train"]) <= float(rows[3]["train_high"])


def test_wrong_kernels_are_not_timed(eager, monkeypatch, capsys):
    right = kernels.eager.Eager.recalibrate
    monkeypatch.setattr(kernels.eager.Eager, "recalibrate", lambda *xs: right(*xs) * 1.01)
    words = ["--model", "resnet8", "--size", "16", "--batch", "8", "--device", "cpu"]
    assert main(["bench", *words]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "wrong results, nothing was measured: spem with init='identity'" in printed.err
    with pytest.raises(RedCaseError, match="output: error"):
        measure_gates("resnet8", **SMALL)


@pytest.mark.parametrize("gate", EACH_GATE)
def test_every_gate_passes_the_check(gate):
    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    call = partial(gate_costs.check_gate, "resnet8", gate, "layer3.*.bn2", images, "eager")
    try:
        create_gate(gate, 64)
    except ValueError as error:  # the width needs an option, which `spem bench` does not take
        with pytest.raises(ValueError, match=re.escape(str(error))):
            call()
        return
    call()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet9"], "depth 9 is neither 6n+2"),
        (["--model", "nowhere:net"], "model is 'nowhere:net', which gave no network: Module"),
        (["--model", "collections:Counter"], "returned an object of Counter"),
        (["--gates", "spme"], "unknown gate 'spme'; known: spem"),
        (["--at", "head"], "head"),
        (["--rounds", "1"], "rounds is 1"),
        (["--model", "json:loads"], "which gave no network: TypeError"),
        (["--out", "nowhere/costs.csv"], "there is no folder for the file nowhere/costs.csv"),
        (["--out", "."], ". is a folder"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(words, message, capsys):
    assert main(["bench", "--model", "resnet8", "--device", "cpu", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
