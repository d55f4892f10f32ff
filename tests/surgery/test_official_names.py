"""The names and shapes that the repositories give the tensors of later gates."""

import pytest
import torch
from torch import nn

from spem.gates import create_gate
from spem.surgery.official import convert_official

C = 32
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def layer(ours, official, *shape):
    """Our names, the official ones, and the shape there where it is another one."""
    return [
        (f"{ours}.weight", f"{official}.weight", shape),
        (f"{ours}.bias", f"{official}.bias", ()),
    ]


def weight(ours, official, *shape):
    return [(f"{ours}.weight", f"{official}.weight", shape)]


def norm(ours, official):
    return [(f"{ours}.{name}", f"{official}.{name}", ()) for name in NORM]


def vectors(*names, shape=()):
    return [(name, name, shape) for name in names]


def gc(fusion, mask, first, middle, last, *shape):
    names = layer("mask", mask)
    for ours, theirs in fusion.items():
        names += layer(f"{ours}.fc1", f"{theirs}.{first}", C // 4, C, 1, 1)
        names += [(f"{ours}.norm.{t}", f"{theirs}.{middle}.{t}", shape) for t in ("weight", "bias")]
        names += layer(f"{ours}.fc2", f"{theirs}.{last}", C, C // 4, 1, 1)
    return names


def triplet(planes, middle):
    names = []
    for ours, theirs in planes.items():
        names += weight(f"{ours}.conv", f"{theirs}.{middle}.conv")
        names += norm(f"{ours}.bn", f"{theirs}.{middle}.bn")
    return names


def coordatt(rows, columns):
    names = layer("conv1", "conv1", 8, C, 1, 1) + norm("bn1", "bn1")
    return names + layer("conv_h", rows, C, 8, 1, 1) + layer("conv_w", columns, C, 8, 1, 1)


def bam():
    channel, spatial = "channel_att.gate_c.gate_c_", "spatial_att.gate_s.gate_s_"
    names = layer("channel.0", f"{channel}fc_0") + layer("channel.3", f"{channel}fc_final")
    names += norm("channel.1", f"{channel}bn_1") + layer("spatial.9", f"{spatial}conv_final")
    for ours, theirs in ((0, "reduce0"), (3, "di_0"), (6, "di_1")):
        names += layer(f"spatial.{ours}", f"{spatial}conv_{theirs}")
        names += norm(f"spatial.{ours + 1}", f"{spatial}bn_{theirs}")
    return names


def mca():
    names = []
    for axis in ("h_cw", "w_hc", "c_hw"):
        names += vectors(f"{axis}.weight") + vectors(f"{axis}.conv.weight", shape=(1, 1, 1, 3))
    return names


ADD, MUL = {"add": "channel_add_conv"}, {"mul": "channel_mul_conv"}
AUTHORS = ("conv_mask", "0", "1", "3", C // 4, 1, 1)
QUERIES = [
    *weight("channel_query", "conv_q_right"),
    *weight("channel_value", "conv_v_right"),
    *weight("place_query", "conv_q_left", C // 2, C, 1, 1),
    *weight("place_value", "conv_v_left"),
]
SEQUENTIAL = [
    *layer("up.0", "conv_up.0", C // 8, C // 2, 1, 1),
    *[(f"up.1.{t}", f"conv_up.1.{t}", (C // 8, 1, 1)) for t in ("weight", "bias")],
    *layer("up.3", "conv_up.3", C, C // 8, 1, 1),
]
EMA = [*layer("conv1x1", "conv1x1", 8, 8, 1, 1), *layer("conv3x3", "conv3x3"), *layer("gn", "gn")]
SA = vectors("cweight", "cbias", "sweight", "sbias", shape=(1, 4, 1, 1)) + layer("gn", "gn")
SCSE = [*layer("fc1", "cSE.fc1"), *layer("fc2", "cSE.fc2"), *layer("conv", "sSE.conv")]
SMP = layer("fc1", "cSE.1", 2, C, 1, 1) + layer("fc2", "cSE.3", C, 2, 1, 1)
ELA = weight("conv_h", "conv_h", C, 1, 7, 1) + weight("conv_w", "conv_w", C, 1, 1, 7)
CASES = {
    "coordatt": ("coordatt", {}, coordatt("conv_h", "conv_w")),
    "coordatt of the MobileNetV2": ("coordatt", {}, coordatt("conv2", "conv3")),
    "simam": ("simam", {}, []),
    "ese": ("ese", {}, layer("fc", "fc", C, C, 1, 1)),
    "gc": ("gc", {"reduction": 4}, gc(ADD, *AUTHORS)),
    "gc of both": ("gc", {"reduction": 4, "fusion": "both"}, gc(ADD | MUL, *AUTHORS)),
    "gc of timm": (
        "gc",
        {"reduction": 4, "fusion": "mul", "eps": 1e-6},
        gc({"mul": "mlp_scale"}, "conv_attn", "fc1", "norm", "fc2"),
    ),
    "triplet": ("triplet", {}, triplet({"cw": "cw", "hc": "hc", "hw": "hw"}, "conv")),
    "triplet of two planes": (
        "triplet",
        {"spatial": False},
        triplet({"cw": "cw", "hc": "hc"}, "conv"),
    ),
    "triplet of the networks": (
        "triplet",
        {},
        triplet({"cw": "ChannelGateH", "hc": "ChannelGateW", "hw": "SpatialGate"}, "spatial"),
    ),
    "ema": ("ema", {"factor": 4}, EMA),
    "nam": ("nam", {}, norm("bn", "Channel_Att.bn2")),
    "grn": ("grn", {}, vectors("gamma", "beta", shape=(1, 1, 1, C))),
    "grn of timm": ("grn", {}, [("gamma", "weight", ()), ("beta", "bias", ())]),
    "bam": ("bam", {"reduction": 4}, bam()),
    "sa": ("sa", {"groups": 4}, SA),
    "scse": ("scse", {}, SCSE),
    "scse of segmentation_models.pytorch": (
        "scse",
        {"reduction": 16, "fuse": "sum"},
        SMP + layer("conv", "sSE.0"),
    ),
    "ela of timm": ("ela", {}, ELA + layer("norm_h", "norm_h") + layer("norm_w", "norm_w")),
    "lct": ("lct", {}, vectors("w", "b")),
    "psa": ("psa", {}, QUERIES + weight("up.0", "conv_up", C, C // 2, 1, 1)),
    "psa, sequential": ("psa", {"layout": "sequential"}, QUERIES + SEQUENTIAL),
    "mca": ("mca", {}, mca()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_state_dict_of_another_repository_loads(case):
    method, options, names = CASES[case]
    gate = create_gate(method, C, **options)
    for tensor in (*gate.parameters(), *(b for n, b in gate.named_buffers() if "running" in n)):
        nn.init.uniform_(tensor, 0.5, 1.5)
    own = gate.state_dict()
    assert {ours for ours, *_ in names} == {*own} - {"gain"}
    official = {
        theirs: own[ours].reshape(shape) if shape else own[ours] for ours, theirs, shape in names
    }
    other = create_gate(method, C, **options)
    other.load_state_dict(convert_official(method, official))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, own[name]), name
