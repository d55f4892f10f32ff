"""State dicts with the authors' names become those of this library's modules."""

import re
from functools import partial

import cards
import official
import pytest
import torch
from official import below, dense_shapes, drawn, each, network_shapes, norm_shapes, vectors

import spem
from spem.gates import create_gate
from spem.norm import GatedBatchNorm2d
from spem.surgery.official import convert_official

C = 32
NETWORKS = [
    ("spem", {}),
    ("se", {}),
    ("sem", {}),
    ("lsas", {}),
    ("lsas", {"order": 3}),
    ("iebn", {}),
    ("dianet", {}),
    ("asr", {}),
]
EACH_NETWORK = pytest.mark.parametrize(("method", "options"), NETWORKS, ids=str)


def bottlenecks(depth, method, options):
    return spem.create_model(f"resnet{depth}", gate=method, block="bottleneck", **options)


@pytest.mark.parametrize(("depth", "blocks"), [(11, 1), (164, 18)])
@EACH_NETWORK
def test_a_network_loads_strictly(method, options, depth, blocks):
    shapes = network_shapes(method, blocks, **options)
    model = bottlenecks(depth, method, options)
    model.load_state_dict(convert_official(method, {k: torch.zeros(v) for k, v in shapes.items()}))
    assert all(gate.gain == 1 for gate in model.modules() if isinstance(gate, spem.Attention))


@EACH_NETWORK
def test_a_network_computes_what_the_official_one_does(method, options):
    state = drawn(network_shapes(method, 2, **options))
    model = bottlenecks(20, method, options).double().eval()
    model.load_state_dict(convert_official(method, state))
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    expected = official.logits(method, state, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def se(s, x, first="fc1", second="fc2"):
    return x * official.se_logits(s, "", x, first, second).sigmoid()[..., None, None]


def by(multiplier, s, x):
    return x * multiplier(s, "", x)[..., None, None]


def srm(s, x):
    style = cards.srm_style(x, s["cfc"])
    return x * official.normal(s, "bn.", style).sigmoid()[..., None, None]


def cbam(s, x):
    layers = [s[f"ChannelGate.mlp.{i}.{name}"] for i in (1, 3) for name in ("weight", "bias")]
    x = x * cards.cbam_channel(x, ("avg", "max"), *layers)[..., None, None]
    if "SpatialGate.spatial.conv.weight" not in s:
        return x
    planes = cards.cbam_spatial(x, s["SpatialGate.spatial.conv.weight"])
    return x * official.normal(s, "SpatialGate.spatial.bn.", planes).sigmoid()


def fcanet(s, x):
    f = (x * s["dct_layer.weight"]).sum((2, 3))
    multiplier = cards.se_logits(f, s["fc.0.weight"], None, s["fc.2.weight"], None).sigmoid()
    return x * multiplier[..., None, None]


def spa_icme(s, x):
    return x * cards.spa_icme(x, s["fc.0.weight"], s["fc.2.weight"])[..., None, None]


def spa_matched(s, x):
    source = cards.pointwise(x[:, : C // 2], s["conv1.0.weight"])
    source = official.normal(s, "conv1.1.", source).relu()
    return x * cards.spa_icme(source, s["fc.0.weight"], s["fc.2.weight"])[..., None, None]


def spa_tmm(s, x):
    z = cards.pointwise(
        cards.spa_tmm_pyramid(x, *vectors(s, "", "weight")), s["transform.0.weight"]
    )
    z = official.normal(s, "transform.1.", z).relu()
    multiplier = cards.pointwise(z, s["transform.3.weight"]).sigmoid()
    return x * cards.nearest(multiplier, *x.shape[2:])


def dianet(s, x):
    zero = x.new_zeros(x.shape[:2])
    return x * official.dianet(s, "", x, (zero, zero))[0][..., None, None]


def danet_position(s, x):
    convolutions = [
        (s[f"{name}_conv.weight"], s[f"{name}_conv.bias"]) for name in ("query", "key", "value")
    ]
    return cards.danet_position(x, *convolutions, s["gamma"])


POSITION = each("gamma", 1)
for _name, _width in (("query", C // 8), ("key", C // 8), ("value", C)):
    POSITION |= each(f"{_name}_conv.weight", _width, C, 1, 1) | each(f"{_name}_conv.bias", _width)
PERCEPTRON = dense_shapes("fc.0", C, 2) | dense_shapes("fc.2", 2, C)
UNBIASED = each("fc.0.weight", 2, C) | each("fc.2.weight", C, 2)
CHANNEL = dense_shapes("ChannelGate.mlp.1", C, 2) | dense_shapes("ChannelGate.mlp.3", 2, C)
SPATIAL = each("conv.weight", 1, 2, 7, 7) | below("bn", norm_shapes(1))
PYRAMID = each("fc.0.weight", 2, 21 * C) | each("fc.2.weight", C, 2)
MATCHER = each("conv1.0.weight", C, C // 2, 1, 1) | below("conv1.1", norm_shapes(C))
# Method, our options, official shapes, the gated map.
GATES = {
    "spem": ("spem", {}, official.spem_shapes(C), partial(by, official.spem)),
    "se": ("se", {}, official.se_shapes(C), se),
    "se-fc": ("se", {}, PERCEPTRON, partial(se, first="fc.0", second="fc.2")),
    "se-unbiased": ("se", {"bias": False}, UNBIASED, partial(se, first="fc.0", second="fc.2")),
    "eca": (
        "eca",
        {},
        each("conv.weight", 1, 1, 3),
        lambda s, x: (
            x * cards.eca_logits(x.mean((2, 3)), s["conv.weight"][0, 0]).sigmoid()[..., None, None]
        ),
    ),
    "srm": ("srm", {}, each("cfc", C, 2) | below("bn", norm_shapes(C)), srm),
    "gct": (
        "gct",
        {},
        each("alpha gamma beta", 1, C, 1, 1),
        lambda s, x: x * cards.gct(x, *vectors(s, "", "alpha gamma beta"))[..., None, None],
    ),
    "cbam": ("cbam", {}, CHANNEL | below("SpatialGate.spatial", SPATIAL), cbam),
    "cbam-channel": ("cbam", {"spatial": False}, CHANNEL, cbam),
    "sge": (
        "sge",
        {"groups": 8},
        each("weight bias", 1, 8, 1, 1),
        lambda s, x: cards.sge(x, 8, *vectors(s, "", "weight bias")),
    ),
    "fcanet": ("fcanet", {}, UNBIASED | each("dct_layer.weight", C, 7, 7), fcanet),
    "spa-a": ("spa", {}, PYRAMID, spa_icme),
    "spa-c": (
        "spa",
        {"variant": "icme-c", "source_channels": C // 2},
        PYRAMID | MATCHER,
        spa_matched,
    ),
    "spa-tmm": (
        "spa",
        {"variant": "tmm-a"},
        each("weight", 1, 3, 1, 1, 1)
        | each("transform.0.weight", 2, C, 1, 1)
        | below("transform.1", norm_shapes(2))
        | each("transform.3.weight", C, 2, 1, 1),
        spa_tmm,
    ),
    "dianet": ("dianet", {}, official.dianet_shapes(C), dianet),
    "sem": ("sem", {}, official.sem_shapes(C), partial(by, official.sem)),
    "lsas-0": ("lsas", {"order": 0}, official.lsas_shapes(C, 0), partial(by, official.lsas)),
    "lsas-5": ("lsas", {"order": 5}, official.lsas_shapes(C, 5), partial(by, official.lsas)),
    "danet": (
        "danet",
        {"attention": "channel"},
        each("gamma", 1),
        lambda s, x: cards.danet_channel(x, s["gamma"]),
    ),
    "danet-position": ("danet", {"attention": "position"}, POSITION, danet_position),
    "asr": ("asr", {}, official.asr_shapes(C), lambda s, x: official.asr(s, "", x)),
    "iebn": ("iebn", {}, official.iebn_shapes(C), lambda s, x: official.iebn(s, "", x)),
}


@pytest.mark.parametrize("case", GATES)
def test_a_gate_computes_what_the_official_one_does(case):
    method, options, shapes, expected = GATES[case]
    state = drawn(shapes)
    gate = create_gate(method, C, **options)
    module = GatedBatchNorm2d(C, gate=gate) if method in ("asr", "iebn") else gate
    module.double().eval().load_state_dict(convert_official(method, state))
    x = torch.randn(2, C, 7, 7, dtype=torch.double)
    with torch.no_grad():
        actual = module(x, x[:, : C // 2]) if gate.needs_source else module(x)
        torch.testing.assert_close(actual, expected(state, x), rtol=1e-10, atol=1e-10)


# From our keys to the official ones: patterns and what they become, and the keys with (1, C, 1, 1).
BACK = {
    "spem": (
        {
            r"bn3\.gate\.excitation_scale": "w1",
            r"bn3\.gate\.excitation_shift": "b1",
            r"bn3\.gate\.reweight_scale": "w2",
            r"bn3\.gate\.reweight_shift": "b2",
            r"bn3\.gate\.pool_weight": "p",
        },
        r"[wb]\d",
    ),
    "se": ({r"bn3\.gate\.": ""}, "-"),
    "sem": ({r"bn3\.gate\.scale": "w1", r"bn3\.gate\.shift": "b1", r"bn3\.gate\.": ""}, r"[wb]\d"),
    "lsas": (
        {
            r"bn3\.gate\.sub_scale\.0": "w",
            r"bn3\.gate\.sub_shift\.0": "b",
            r"bn3\.gate\.sub_scale\.1": "w2",
            r"bn3\.gate\.sub_shift\.1": "b2",
            r"bn3\.gate\.sub_scale\.2": "w3",
            r"bn3\.gate\.sub_shift\.2": "b3",
            r"bn3\.gate\.": "",
        },
        r"[wb]\d?",
    ),
    "iebn": ({r"gate\.scale": "weight_readjust", r"gate\.shift": "bias_readjust"}, ".*_readjust"),
    "dianet": ({r"0\.bn3\.gate\.(w_ih|w_hh)\.": r"lstm.\1.0.seq."}, "-"),
    "asr": (
        {r"bn3\.(?!gate)": "bn3.bn.", r"bn3\.gate\.attention": "bn3.attention_module"}
        | {r"bn3\.gate\.vector": "bn3.vector"},
        "vector",
    ),
}


def official_from(method, ours):
    patterns, vector_names = BACK[method]
    state = {}
    for key, tensor in ours.items():
        if key.endswith("gain"):
            continue
        gated_norm = method == "iebn" and f"{key.rpartition('.')[0]}.gate.scale" in ours
        for pattern, name in patterns.items():
            key = re.sub(pattern, name, key)
        leaf = key.rpartition(".")[2]
        in_norm = gated_norm and leaf in ("weight", "bias")
        is_vector = in_norm or re.fullmatch(vector_names, leaf)
        state[key] = tensor.reshape(1, -1, 1, 1) if is_vector else tensor
    return state


@EACH_NETWORK
def test_a_round_trip_changes_nothing(method, options):
    ours = bottlenecks(20, method, options).state_dict()
    back = convert_official(method, official_from(method, ours))
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)


def test_the_prefix_of_data_parallel_is_left_out():
    state = drawn(network_shapes("spem", 1))
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    plain, unwrapped = (convert_official("spem", s) for s in (state, wrapped))
    assert plain.keys() == unwrapped.keys()
    assert all(torch.equal(plain[key], unwrapped[key]) for key in plain)


@pytest.mark.parametrize("method", ["spem", "asr"])
def test_old_checkpoints_have_no_counters(method):
    state = drawn(network_shapes(method, 1))
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    converted = convert_official(method, old)
    bottlenecks(11, method, {}).load_state_dict(converted)
    counters = [v for key, v in converted.items() if key.endswith("num_batches_tracked")]
    assert len(counters) == 1 + 3 * 4
    assert all(torch.equal(counter, torch.tensor(0)) for counter in counters)


def test_basic_blocks_of_iebn():
    ours = spem.create_model("resnet20", gate="iebn").state_dict()
    assert convert_official("iebn", official_from("iebn", ours)).keys() == ours.keys()
