"""Weights without the gates, or for other classes or channels: what is loaded, and what is said."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from gatings import EACH_GATE, OPTIONS, WITHOUT_IDENTITY, randomise, randomise_norms
from torch import nn

from spem.export.weights import start_from
from spem.gates import gate_options
from spem.models import create_model
from spem.surgery.start import start_from_state
from spem.train.recipe import Recipe
from spem.train.start import load_start

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def trained(gate=None, **options):
    """A network with weights and statistics at random."""
    torch.manual_seed(1)
    return randomise(randomise_norms(create_model("resnet8", gate, **options).eval()))


@pytest.mark.parametrize("gate", EACH_GATE)
def test_gates_that_weights_lack_start_as_asked_and_those_that_are_there_are_loaded(gate):
    plain = trained()
    has_identity = "init" in gate_options(gate) and gate not in WITHOUT_IDENTITY
    options = OPTIONS.get(gate, {}) | ({"init": "identity"} if has_identity else {})
    model = create_model("resnet8", gate, placement="residual", **options).eval()
    started = start_from_state(model, plain.state_dict(), "plain")
    assert started == ([], False)
    if has_identity:
        torch.testing.assert_close(model(X), plain(X), rtol=1e-5, atol=1e-5)
    again = trained(gate, placement="residual", **options)
    model = create_model("resnet8", gate, placement="residual", **options).eval()
    has_gates = any(p for p in again.state_dict() if p not in plain.state_dict())
    assert start_from_state(model, again.state_dict(), "gated") == ([], True)
    assert has_gates
    assert torch.equal(model(X), again(X))


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_classifier_of_other_classes_or_none_starts_anew_and_says_so(prefix):
    stored = {f"{prefix}{key}": value for key, value in trained().state_dict().items()}
    model = create_model("resnet8", num_classes=3)
    own = model.fc.weight.clone()
    said = "the classifier 'fc' starts anew: it has 3 classes, that of FILE has 10"
    assert start_from_state(model, stored, "FILE") == ([said], True)
    assert torch.equal(model.fc.weight, own)
    headless = {key: value for key, value in stored.items() if "fc." not in key}
    said = "the classifier 'fc' starts anew: it has 3 classes, FILE: none"
    assert start_from_state(model, headless, "FILE") == ([said], True)
    assert torch.equal(model.fc.weight, own)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_kernels_for_colours_serve_other_channels(channels):
    stored = trained()
    model = create_model("resnet8", in_channels=channels).eval()
    (said,), _ = start_from_state(model, stored.state_dict(), "FILE")
    assert said == (
        f"the convolution 'conv1' for {channels} channels starts with the kernels for 3 of FILE"
    )
    if channels == 1:  # a grey picture gives what it gives in three equal colours
        grey = X[:, :1]
        torch.testing.assert_close(model(grey), stored(grey.expand(-1, 3, -1, -1)))
    kernels = model.conv1.weight.sum(1)
    assert kernels.shape == stored.conv1.weight.sum(1).shape


def test_what_does_not_fit_is_refused_and_nothing_is_loaded():
    state = trained().state_dict()
    gated = trained("se", placement="residual", reduction=4).state_dict()
    half = {k: v for k, v in gated.items() if not (k.startswith("layer3") and ".gate." in k)}
    wider = {"other.weight": torch.zeros(2, 2), **state}
    for model, given, sentence in (
        (create_model("resnet14"), state, r"would lose weights: 30 missing"),
        (create_model("resnet8"), gated, r"would lose weights: 15 unexpected"),
        (create_model("resnet8", "eca"), gated, "there are .* weights of the gates in FILE"),
        (create_model("resnet8"), wider, r"1 unexpected \(other.weight\)"),
        (
            create_model("resnet8", "se", reduction=4),
            half,
            r"there are 10 of the 15 weights of the gates in FILE",
        ),
        (create_model("resnet8"), {"state_dict": state}, "whole checkpoint"),
    ):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=sentence):
            start_from_state(model, given, "FILE")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Cosine(nn.Module):
    """A classifier that is neither a linear layer nor a convolution."""

    def __init__(self, width, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width))

    def forward(self, x):
        return F.normalize(x) @ F.normalize(self.weight).T


def test_a_classifier_that_cannot_be_found_is_named_with_the_way_out(tmp_path):
    def build(classes):
        model = create_model("resnet8", num_classes=classes)
        model.fc = Cosine(64, classes)
        return model

    model, other = build(5), build(7)
    sentence = (
        "the classifier of this ResNet cannot be found: fc.weight has 5 classes, and 7 as stored,"
        " but is neither a linear layer nor a convolution: build the network for 7 classes, load"
        " the weights, then replace its classifier"
    )
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        start_from_state(model, other.state_dict(), "it")
    torch.save(other.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=sentence):
        start_from(model, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=sentence):
        load_start(model, Recipe(weights=str(tmp_path / "w.pth")))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    start_from_state(build(7), other.state_dict(), "it")  # the way out
    wide = create_model("resnet20", num_classes=7)
    wide.fc = Cosine(64, 7)
    with pytest.raises(ValueError, match=r"lose weights"):
        start_from_state(model, wide.state_dict(), "it")
