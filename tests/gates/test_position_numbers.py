"""The gates of `position_cards.py` against their published equations, in float64."""

import pytest
import torch
from mapped_cards import case_id, drawn
from position_cards import CARDS
from test_gate_numbers import IMPLEMENTATIONS, TRAINING, compare

from spem import kernels

CASES = [
    ("coordatt", 8, {}),
    ("coordatt", 40, {"reduction": 4}),
    ("simam", 8, {}),
    ("simam", 8, {"e_lambda": 0.1}),
    ("ese", 8, {}),
    ("ese", 8, {"activation": "sigmoid"}),
    *(
        ("gc", 8, {"reduction": 2, "pooling": pooling, "fusion": fusion})
        for pooling in ("att", "avg")
        for fusion in ("add", "mul", "both")
    ),
    ("gc", 8, {"reduction": 2, "eps": 0.1}),
    ("triplet", 8, {}),
    ("triplet", 8, {"kernel_size": 3, "spatial": False}),
    ("ema", 8, {"factor": 2}),
    ("ema", 8, {"factor": 8}),
    ("nam", 8, {}),
    ("grn", 8, {}),
    ("grn", 8, {"eps": 0.1}),
    ("bam", 8, {"reduction": 2}),
    ("bam", 8, {"reduction": 4, "dilation": 1, "fuse": "sum"}),
    ("sa", 8, {"groups": 2}),
    ("sa", 8, {"groups": 4}),
    ("scse", 8, {}),
    ("scse", 8, {"reduction": 4, "fuse": "sum"}),
    ("ge", 8, {}),
    ("ge", 8, {"extent": 2}),
    ("ge", 8, {"extent": 3}),
    ("ge", 8, {"variant": "theta", "map_size": 4}),
    ("ge", 8, {"variant": "plus", "map_size": 4, "reduction": 2}),
    ("ela", 8, {}),
    ("ela", 8, {"kernel_size": 3, "skip": True, "eps": 0.1}),
    ("lct", 8, {"groups": 2}),
    ("lct", 8, {"groups": 4, "eps": 0.1}),
    ("psa", 8, {}),
    ("psa", 16, {"layout": "sequential"}),
    ("mca", 16, {}),
    ("mca", 32, {}),
    ("mca", 8, {"channel_gate": False}),
]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@TRAINING
@pytest.mark.parametrize(("name", "channels", "options"), CASES, ids=case_id)
def test_the_gate_equals_its_card(name, channels, options, training):
    torch.manual_seed(0)
    gate = drawn(name, channels, **options).train(training)
    x = torch.randn(3, channels, 4, 4 if "map_size" in options else 5, requires_grad=True)
    expected = CARDS[name](gate, x, **options)
    for implementation in IMPLEMENTATIONS:
        with kernels.use(implementation):
            compare(gate(x), expected, x, dict(gate.named_parameters()))
