"""The learning-rate range test: what it measures, suggests, writes, and leaves as it was."""

import csv
from bisect import bisect_left
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import SMALL, net

from spem.cli import main
from spem.models import create_model
from spem.train import rate_range
from spem.train.rate_range import RateRange, find_rate, valley

TEST = replace(SMALL, mean=[0.3], std=[0.4], crop=0)


def middle_of_fall(losses):
    """The middle third's middle of the steps that the longest fall is as long as, by piles."""
    tops, end, most = [], 0, 0
    for i, loss in enumerate(losses):
        place = bisect_left(tops, -loss)  # pile i ends the falls of i + 1 losses
        tops[place : place + 1] = [-loss]
        if place + 1 > most:
            end, most = i, place + 1
    return end - most + most // 3 + most // 6


def test_the_valley_is_in_the_longest_fall():
    numbers = torch.Generator().manual_seed(0)
    for count in (10, 40, 85):
        for _ in range(20):
            losses = torch.rand(count, generator=numbers)
            losses = (losses + torch.linspace(2, 0, count).square()).tolist()
            assert valley(losses) == max(0, middle_of_fall(losses))
    assert valley([1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize(("fall", "flat"), [(0, True), (0.5, True), (3, False), (30, False)])
def test_a_loss_that_falls_less_than_it_varies_is_flat(fall, flat):
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    trend = 5 - fall * torch.linspace(-3, 1, 100).clamp(0)
    found = RateRange([], (trend + noise).tolist(), trend.tolist(), 0.1)
    assert found.is_flat is flat


def test_the_rate_climbs_until_the_loss_diverges_and_a_model_stays_as_it_is():
    model = net()
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    found = find_rate(TEST, model, steps=40)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert found == find_rate(TEST, model, steps=40)
    assert found.rates[0] == 1e-7
    factors = [b / a for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert factors == pytest.approx([1e8 ** (1 / 39)] * len(factors))
    assert len(found.rates) == len(found.losses) == len(found.smoothed)
    assert found.smoothed[0] == pytest.approx(found.losses[0])
    assert 1e-5 < found.suggestion < 1
    steep = find_rate(replace(TEST, lr_factors={"backbone": 1e5, "classifier": 1e5}), model)
    assert len(steep.rates) < 80  # it ended early
    assert steep.suggestion is None or steep.suggestion < found.suggestion


def test_frozen_weights_and_gates_are_those_of_the_recipe():
    model = create_model("resnet8", "spem", in_channels=1)
    moved = find_rate(TEST, model, steps=20)
    frozen = find_rate(replace(TEST, freeze="backbone"), model, steps=20)
    assert moved.losses[0] != frozen.losses[0]  # frozen norms use their running statistics
    assert moved.losses[-1] != frozen.losses[-1]


def test_the_command_writes_a_picture_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["find-lr", "--data", "digits", "--model", "resnet8", "--gate", "se", "--steps", "20"]
    assert main([*words, "--batch-size", "32", "--optimizer", "adamw"]) == 0
    assert "learning-rates.png, learning-rates.csv" in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == [
        "learning-rates.csv",
        "learning-rates.png",
    ]
    with Path("learning-rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {"learning_rate", "loss", "smoothed_loss"}
    with Image.open("learning-rates.png") as picture:
        assert picture.size == (900, 600)


def test_the_command_warns_of_a_loss_that_hardly_falls(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rates = [10.0**n for n in range(-7, 3)]
    for end, warned in ((2.29, True), (0.5, False)):
        found = RateRange(rates, [2.3, 2.2] * 5, [*[2.3] * 9, end], 0.1)
        monkeypatch.setattr(rate_range, "find_rate", lambda *_, found=found, **__: found)
        assert main(["find-lr"]) == 0
        assert ("the loss hardly falls" in capsys.readouterr().out) is warned


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "a.jpg"], "out is a.jpg, must end in .png"),
        (["--out", "none/a.png"], "there is no folder none"),
        (["--steps", "5"], "steps is 5, must be a whole number from 20"),
        (["--data", "nothing"], "there is no folder nothing"),
        (["--gate", "sem9"], "unknown gate 'sem9'"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    words, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["find-lr", "--data", "digits", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not [*Path().iterdir()]
