"""The multipliers of gates over a data set, by channel, class and value."""

import copy

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, randomise
from torch import nn

import spem
from spem.explain import profile_gates
from spem.explain.gate_figures import write_gate_figures
from spem.explain.profile import BIN
from spem.gates.pooling import mixing_ratios

X = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 2, 2, 0, 2, 0, 0])  # none of class 1
BATCHES = [(X[:4], LABELS[:4]), (X[4:], LABELS[4:])]


@pytest.mark.parametrize("gate", EACH_GATE)
def test_a_profile_is_that_of_the_multipliers_of_each_image(gate):
    model = randomise(spem.create_model("resnet8", gate, **OPTIONS.get(gate, {}))).eval()
    with spem.record_gates(model) as recorded:
        for image in X:
            model(image[None])
    # Where a gate runs more than once for an image, each of its runs counts.
    values = {
        name: torch.cat(runs).double().view(len(X), -1, runs[0].shape[1])
        for name, runs in recorded.items()
        if runs
    }
    model.layer2.train()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    if not values:
        with pytest.raises(ValueError, match="of every gate of this ResNet differ between the pos"):
            profile_gates(model, BATCHES, 3)
        return
    found = profile_gates(model, BATCHES, 3)
    assert [*found] == [*values]
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for name, profile in found.items():
        each = values[name]
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(profile.mean, each.mean((0, 1)), **close)
        std = each.flatten(0, 1).std(0, correction=0)
        torch.testing.assert_close(profile.std, std, **close)
        for label in (0, 2):
            mean = each[label == LABELS].mean((0, 1))
            torch.testing.assert_close(profile.by_class[label], mean, **close)
        assert profile.by_class[1].isnan().all()
        assert sum(profile.counts.values()) == each.numel()
        assert min(profile.counts) <= each.min() / BIN + 1e-3
        assert max(profile.counts) >= each.max() / BIN - 1 - 1e-3


def test_the_figures_have_their_numbers_beside_them(tmp_path):
    model = randomise(spem.create_model("resnet8", "spem")).eval()
    found, classes = profile_gates(model, BATCHES, 3), ["a", "b$c$", "d"]
    names = write_gate_figures(tmp_path, found, mixing_ratios(model), classes, "net")
    assert names == ["gates.png", "histograms.png", "mixing.png"]
    assert all((tmp_path / name).stat().st_size > 5_000 for name in names)
    tables = [(tmp_path / name).with_suffix(".csv").read_text().splitlines() for name in names]
    gate, profile = "layer1.0.bn2.gate", found["layer1.0.bn2.gate"]
    assert f"{gate},all,5,{profile.mean[5]:.7g},{profile.std[5]:.7g}" in tables[0]
    assert f"{gate},d,5,{profile.by_class[2, 5]:.7g}," in tables[0]
    assert not any(line.startswith(f"{gate},b$c$") for line in tables[0])  # no image
    shares = [float(row.rpartition(",")[2]) for row in tables[1] if row.startswith(gate)]
    assert sum(shares) == pytest.approx(1)
    assert len(tables[2]) == 1 + 3


@pytest.mark.parametrize(
    ("model", "batches", "sentence"),
    [
        (spem.create_model("resnet8"), BATCHES, "this ResNet has no gates"),
        (nn.Conv2d(3, 3, 1), BATCHES, "this Conv2d has no gates"),
        (spem.create_model("resnet8", "se"), [], "there are no images to measure the gates on"),
        (spem.create_model("resnet8", "se"), [X], "must give pairs"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(model, batches, sentence):
    with pytest.raises(ValueError, match=sentence):
        profile_gates(model, batches, 3)


@pytest.mark.gates
def test_many_gates_are_drawn_evenly(tmp_path):
    model = spem.create_model("resnet83", "spem", num_classes=3)
    profiles = profile_gates(model, [(X[:2, :, :8, :8], LABELS[:2])], 3)
    assert len(profiles) > 9
    write_gate_figures(tmp_path, profiles, mixing_ratios(model), ["a", "b", "c"], "net " * 60)
    lines = (tmp_path / "mixing.csv").read_text().splitlines()
    assert len(lines) == len(profiles) + 1
