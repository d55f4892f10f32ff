"""State dicts that are not those of an official module are refused."""

import pytest
import torch
from official import network_shapes
from test_official import C

from spem.surgery.official import convert_official

SPEM11 = {key: torch.zeros(shape) for key, shape in network_shapes("spem", 1).items()}
SE11 = {key: torch.zeros(shape) for key, shape in network_shapes("se", 1).items()}
LSAS11 = {key: torch.zeros(shape) for key, shape in network_shapes("lsas", 1).items()}


def without(state, *keys):
    return {key: tensor for key, tensor in state.items() if key not in keys}


@pytest.mark.parametrize(
    ("method", "state", "message"),
    [
        ("spme", {}, "unknown official method 'spme'; known: spem, "),
        ("srp", {}, "unknown official method 'srp'; known: "),
        ("eca", SPEM11, "no official network of 'eca' is known, only of asr, dianet, iebn, "),
        ("spem", {}, r"5 missing \(b1, b2, p, …\)$"),
        (
            "spem",
            SE11,
            r"12 unexpected \(layer1.0.fc1.bias, .*; 15 missing \(layer1.0.b1, ",
        ),
        (
            "spem",
            without(SPEM11, "layer2.0.p"),
            r"'spem' by its authors: 1 missing \(layer2.0.p\)",
        ),
        ("spem", without(SPEM11, "conv1.weight"), r"by its authors: 1 missing \(conv1.weight\)$"),
        (
            "spem",
            SPEM11 | {"bn.weight": torch.zeros(3)},
            r": 1 unexpected \(bn.weight\)$",
        ),
        (
            "spem",
            {k: v for k, v in SPEM11.items() if "layer3" not in k},
            "missing .layer3.0.b1, ",
        ),
        ("lsas", SE11, r"8 unexpected \(layer1.0.fc1.bias, .*…\)$"),
        ("lsas", without(LSAS11, "layer3.0.w"), r"by its authors: 1 missing \(layer3.0.w\)$"),
        ("se", {"fc1.weight": torch.zeros(2, C)}, r"3 missing \(fc1.bias, fc2.bias, fc2.weight\)$"),
        (
            "eca",
            {"state_dict": {}, "epoch": 3},
            "this is a whole checkpoint",
        ),
    ],
)
def test_foreign_state_dicts_are_refused(method, state, message):
    with pytest.raises(ValueError, match=message):
        convert_official(method, state)
