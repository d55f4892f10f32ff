"""The names of published gates: for every key of ours, where its tensor comes from."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Source(NamedTuple):
    """A key of the authors, None for the constant 1, and what brings its tensor into our shape."""

    key: str | None = None
    form: Callable[[Tensor], Tensor] | None = None


Renaming = dict[str, Source]

NORM = "weight bias running_mean running_var num_batches_tracked"
GAIN: Renaming = {"gain": Source()}


def rename_layer(
    ours: str,
    official: str,
    tensors: str = "weight bias",
    form: Callable[[Tensor], Tensor] | None = None,
) -> Renaming:
    """Rename the tensors of a layer; `form` brings its weight into our shape."""
    return {
        f"{ours}.{name}": Source(f"{official}.{name}", form if name == "weight" else None)
        for name in tensors.split()
    }


def _vectors(ours: str, official: str) -> Renaming:
    """Parameters of (C,) here and (1, C, 1, 1) there, named in the same order."""
    pairs = zip(ours.split(), official.split(), strict=True)
    return {name: Source(key, Tensor.flatten) for name, key in pairs}


def put_below(ours: str, official: str, renaming: Renaming) -> Renaming:
    """Put a renaming below a prefix on either side."""
    return {
        ours + name: source if source.key is None else source._replace(key=official + source.key)
        for name, source in renaming.items()
    }


def _perceptron(first: str, second: str, tensors: str = "weight bias") -> Renaming:
    return GAIN | rename_layer("fc1", first, tensors) | rename_layer("fc2", second, tensors)


def _lsas(order: int) -> Renaming:
    renaming = _perceptron("fc1", "fc2")
    for j in range(order):
        suffix = "" if j == 0 else j + 1
        renaming |= _vectors(f"sub_scale.{j} sub_shift.{j}", f"w{suffix} b{suffix}")
    return renaming


_SE = _perceptron("fc1", "fc2")
_CBAM = _perceptron("ChannelGate.mlp.1", "ChannelGate.mlp.3")
_SPA = (
    GAIN
    | rename_layer("pyramid.fc1", "fc.0", "weight")
    | rename_layer("pyramid.last", "fc.2", "weight")
)

# Of each method one renaming for every form in its repositories. ASR and IEBN are norms there, so
# theirs are those of a `GatedBatchNorm2d`.
RENAMINGS: dict[str, list[Renaming]] = {
    "spem": [
        GAIN
        | _vectors("excitation_scale excitation_shift", "w1 b1")
        | _vectors("reweight_scale reweight_shift pool_weight", "w2 b2 p")
    ],
    "se": [_SE, _perceptron("fc.0", "fc.2"), _perceptron("fc.0", "fc.2", "weight")],
    "eca": [GAIN | rename_layer("conv", "conv", "weight")],
    "srm": [GAIN | {"style_weight": Source("cfc")} | rename_layer("bn", "bn", NORM)],
    "gct": [GAIN | _vectors("alpha gamma beta", "alpha gamma beta")],
    "cbam": [
        _CBAM
        | rename_layer("spatial.conv", "SpatialGate.spatial.conv", "weight")
        | rename_layer("spatial.bn", "SpatialGate.spatial.bn", NORM),
        _CBAM,
    ],
    "sge": [GAIN | _vectors("weight bias", "weight bias")],
    "fcanet": [_perceptron("fc.0", "fc.2", "weight") | {"dct": Source("dct_layer.weight")}],
    "spa": [
        _SPA,
        _SPA
        | rename_layer("matcher.0", "conv1.0", "weight")
        | rename_layer("matcher.1", "conv1.1", NORM),
        GAIN
        | _vectors("pyramid.level_weight", "weight")
        | rename_layer("pyramid.conv", "transform.0", "weight")
        | rename_layer("pyramid.bn", "transform.1", NORM)
        | rename_layer("pyramid.last", "transform.3", "weight"),
    ],
    "dianet": [
        GAIN
        | rename_layer("w_ih.0", "w_ih.0.seq.0")
        | rename_layer("w_ih.2", "w_ih.0.seq.2")
        | rename_layer("w_hh.0", "w_hh.0.seq.0")
        | rename_layer("w_hh.2", "w_hh.0.seq.2")
    ],
    "sem": [
        _SE
        | rename_layer("switch_fc", "switch_fc")
        | rename_layer("conv", "conv", "weight")
        | _vectors("scale shift", "w1 b1")
    ],
    "lsas": [_lsas(order) for order in range(6)],
    "danet": [
        GAIN | {"channel.gamma": Source("gamma", Tensor.squeeze)},
        GAIN
        | rename_layer("position.query", "query_conv")
        | rename_layer("position.key", "key_conv")
        | rename_layer("position.value", "value_conv")
        | {"position.gamma": Source("gamma", Tensor.squeeze)},
    ],
    "asr": [
        {name: Source(f"bn.{name}") for name in NORM.split()}
        | {"gate.vector": Source("vector", lambda vector: vector.flatten()[None])}
        | put_below("gate.", "", GAIN)
        | put_below("gate.attention.", "attention_module.", _SE)
    ],
    "iebn": [
        _vectors("weight bias", "weight bias")
        | {name: Source(name) for name in NORM.split()[2:]}
        | _vectors("gate.scale gate.shift", "weight_readjust bias_readjust")
        | put_below("gate.", "", GAIN)
    ],
}


def _matrix(weight: Tensor) -> Tensor:
    """A linear layer (R, C) here, a 1×1 convolution (R, C, 1, 1) there."""
    return weight.flatten(1)


def _strip(weight: Tensor) -> Tensor:
    """A convolution over a strip (R, C, k) here, over a map of the width 1 there."""
    return weight.flatten(2)


def _context(ours: str, first: str, norm: str, second: str) -> Renaming:
    """The transform of a GC block."""
    return (
        rename_layer(f"{ours}.fc1", first, form=_matrix)
        | _vectors(f"{ours}.norm.weight {ours}.norm.bias", f"{norm}.weight {norm}.bias")
        | rename_layer(f"{ours}.fc2", second, form=_matrix)
    )


def _gc(fusions: str, *, authors: bool) -> Renaming:
    """Return the renaming of a GC block with attention pooling, of the authors or of timm."""
    names = {"add": "channel_add_conv", "mul": "channel_mul_conv"}
    names = names if authors else {"add": "mlp_add", "mul": "mlp_scale"}
    layers = ("0", "1", "3") if authors else ("fc1", "norm", "fc2")
    renaming = GAIN | rename_layer("mask", "conv_mask" if authors else "conv_attn")
    for fusion in fusions.split():
        renaming |= _context(fusion, *(f"{names[fusion]}.{layer}" for layer in layers))
    return renaming


def _triplet(official: dict[str, str], middle: str) -> Renaming:
    renaming = dict(GAIN)
    for ours, theirs in official.items():
        renaming |= rename_layer(f"{ours}.conv", f"{theirs}.{middle}conv", "weight")
        renaming |= rename_layer(f"{ours}.bn", f"{theirs}.{middle}bn", NORM)
    return renaming


def _coordatt(rows: str, columns: str) -> Renaming:
    renaming = GAIN | rename_layer("bn1", "bn1", NORM)
    for ours, theirs in (("conv1", "conv1"), ("conv_h", rows), ("conv_w", columns)):
        renaming |= rename_layer(ours, theirs, form=_strip)
    return renaming


_BAM_CHANNEL = {"0": "fc_0", "1": "bn_1", "3": "fc_final"}
_BAM_SPATIAL = {"0": "conv_reduce0", "1": "bn_reduce0", "3": "conv_di_0", "4": "bn_di_0"}
_BAM_SPATIAL |= {"6": "conv_di_1", "7": "bn_di_1", "9": "conv_final"}
_PLANES = {"cw": "cw", "hc": "hc", "hw": "hw"}
_PLANES_OF_NETWORKS = {"cw": "ChannelGateH", "hc": "ChannelGateW", "hw": "SpatialGate"}
_PSA_QUERIES = (
    GAIN
    | rename_layer("channel_query", "conv_q_right", "weight")
    | rename_layer("channel_value", "conv_v_right", "weight")
    | rename_layer("place_query", "conv_q_left", "weight", _matrix)
    | rename_layer("place_value", "conv_v_left", "weight")
)


def _bam() -> Renaming:
    renaming = dict(GAIN)
    for ours, theirs, layers in (
        ("channel", "channel_att.gate_c.gate_c_", _BAM_CHANNEL),
        ("spatial", "spatial_att.gate_s.gate_s_", _BAM_SPATIAL),
    ):
        for layer, name in layers.items():
            tensors = NORM if name.startswith("bn") else "weight bias"
            renaming |= rename_layer(f"{ours}.{layer}", theirs + name, tensors)
    return renaming


def _mca(axes: str) -> Renaming:
    renaming = dict(GAIN)
    for axis in axes.split():
        kernel = Source(f"{axis}.conv.weight", lambda weight: weight.flatten(1, 2))
        renaming |= {f"{axis}.weight": Source(f"{axis}.weight"), f"{axis}.conv.weight": kernel}
    return renaming


def _without(renaming: Renaming, part: str) -> Renaming:
    return {name: source for name, source in renaming.items() if not name.startswith(f"{part}.")}


RENAMINGS |= {
    "coordatt": [_coordatt("conv_h", "conv_w"), _coordatt("conv2", "conv3")],
    "simam": [GAIN],
    "ese": [GAIN | rename_layer("fc", "fc", form=_matrix)],
    "gc": [
        _gc(fusions, authors=authors)
        for authors in (True, False)
        for fusions in ("add", "mul", "add mul")
    ],
    "triplet": [
        form
        for planes, middle in ((_PLANES, "conv."), (_PLANES_OF_NETWORKS, "spatial."))
        for full in (_triplet(planes, middle),)
        for form in (full, _without(full, "hw"))
    ],
    "ema": [
        GAIN
        | rename_layer("conv1x1", "conv1x1", form=_strip)
        | rename_layer("conv3x3", "conv3x3")
        | rename_layer("gn", "gn")
    ],
    "nam": [GAIN | rename_layer("bn", "Channel_Att.bn2", NORM)],
    "grn": [
        GAIN | _vectors("gamma beta", "gamma beta"),
        GAIN | _vectors("gamma beta", "weight bias"),
    ],
    "bam": [_bam()],
    "sa": [
        GAIN
        | _vectors("cweight cbias sweight sbias", "cweight cbias sweight sbias")
        | rename_layer("gn", "gn")
    ],
    "scse": [
        _perceptron("cSE.fc1", "cSE.fc2") | rename_layer("conv", "sSE.conv"),
        GAIN
        | rename_layer("fc1", "cSE.1", form=_matrix)
        | rename_layer("fc2", "cSE.3", form=_matrix)
        | rename_layer("conv", "sSE.0"),
    ],
    "ela": [
        GAIN
        | rename_layer("conv_h", "conv_h", "weight", _strip)
        | rename_layer("conv_w", "conv_w", "weight", _strip)
        | rename_layer("norm_h", "norm_h")
        | rename_layer("norm_w", "norm_w")
    ],
    "lct": [GAIN | _vectors("w b", "w b")],
    "psa": [
        _PSA_QUERIES | rename_layer("up.0", "conv_up", "weight", _matrix),
        _PSA_QUERIES
        | rename_layer("up.0", "conv_up.0", form=_matrix)
        | _vectors("up.1.weight up.1.bias", "conv_up.1.weight conv_up.1.bias")
        | rename_layer("up.3", "conv_up.3", form=_matrix),
    ],
    "mca": [_mca("h_cw w_hc c_hw"), _mca("h_cw w_hc")],
}
