"""The authors' CIFAR networks: their keys with shapes, and what they compute from a state dict.

Written from the published descriptions, apart from the library and its conversion. All networks are
bottleneck ResNets for 10 classes in evaluation; `s` is always a state dict with the authors' names.
"""

from itertools import count

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv1d, conv2d, linear, relu

Shapes = dict[str, tuple[int, ...]]


def each(names: str, *shape: int) -> Shapes:
    return dict.fromkeys(names.split(), shape)


def below(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{key}": shape for key, shape in shapes.items()}


def norm_shapes(channels: int) -> Shapes:
    vectors = each("weight bias running_mean running_var", channels)
    return vectors | each("num_batches_tracked")


def dense_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return each(f"{name}.weight", outputs, inputs) | each(f"{name}.bias", outputs)


def se_shapes(channels: int) -> Shapes:
    hidden = channels // 16
    return dense_shapes("fc1", channels, hidden) | dense_shapes("fc2", hidden, channels)


def spem_shapes(channels: int) -> Shapes:
    return each("w1 b1 w2 b2", 1, channels, 1, 1) | each("p", 2)


def sem_shapes(channels: int) -> Shapes:
    kernel = each("conv.weight", 1, 1, 3 if channels < 128 else 5)
    vectors = each("w1 b1", 1, channels, 1, 1)
    return se_shapes(channels) | dense_shapes("switch_fc", channels, 3) | kernel | vectors


def lsas_shapes(channels: int, order: int = 1) -> Shapes:
    names = ("w b", "w2 b2", "w3 b3", "w4 b4", "w5 b5")[:order]
    return se_shapes(channels) | each(" ".join(names), 1, channels, 1, 1)


def dianet_shapes(channels: int) -> Shapes:
    hidden = channels // 4
    first, second = dense_shapes("0", channels, hidden), dense_shapes("2", hidden, 4 * channels)
    return below("w_ih.0.seq", first | second) | below("w_hh.0.seq", first | second)


def iebn_shapes(channels: int) -> Shapes:
    vectors = each("weight bias weight_readjust bias_readjust", 1, channels, 1, 1)
    return norm_shapes(channels) | vectors


def asr_shapes(channels: int) -> Shapes:
    norms = below("bn", norm_shapes(channels)) | below("fused_bn", norm_shapes(channels))
    return (
        norms | each("vector", 1, channels, 1, 1) | below("attention_module", se_shapes(channels))
    )


IN_BLOCK = {"spem": spem_shapes, "se": se_shapes, "sem": sem_shapes, "lsas": lsas_shapes}


def network_shapes(method: str, blocks: int, **options: int) -> Shapes:
    """All keys of a network with so many blocks a stage."""
    norm = iebn_shapes if method == "iebn" else norm_shapes
    last = asr_shapes if method == "asr" else norm
    shapes = each("conv1.weight", 16, 3, 3, 3) | below("bn1", norm(16))
    shapes |= dense_shapes("fc", 256, 10)
    width = 16
    for layer, planes in (("layer1", 16), ("layer2", 32), ("layer3", 64)):
        channels = 4 * planes
        if method == "dianet":
            shapes |= below(f"{layer}.lstm", dianet_shapes(channels))
        for index in range(blocks):
            own = each("conv1.weight", planes, width, 1, 1) | below("bn1", norm(planes))
            own |= each("conv2.weight", planes, planes, 3, 3) | below("bn2", norm(planes))
            own |= each("conv3.weight", channels, planes, 1, 1) | below("bn3", last(channels))
            if index == 0:
                own |= each("downsample.0.weight", channels, width, 1, 1)
                own |= below("downsample.1", norm_shapes(channels))
            if method in IN_BLOCK and (method != "lsas" or layer == "layer3"):
                own |= IN_BLOCK[method](channels, **options)
            shapes |= below(f"{layer}.{index}", own)
            width = channels
    return shapes


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    """Random float64 tensors of these shapes, variances positive."""
    tensors = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, dtype=torch.double)
        if key.endswith("num_batches_tracked"):
            values = torch.tensor(7)
        elif key.endswith("running_var"):
            values = values.abs() + 0.5
        elif len(shape) > 1 and shape[0] > 1:
            values = values * values[0].numel() ** -0.5
        tensors[key] = values
    return tensors


def vectors(s, at, names):
    """Tensors of (1, C, 1, 1) as (C,)."""
    return [s[at + name].flatten() for name in names.split()]


def dense(s, name, x):
    return linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def normal(s, at, x):
    moments = s[f"{at}running_mean"], s[f"{at}running_var"]
    return batch_norm(x, *moments, s[f"{at}weight"], s[f"{at}bias"])


def iebn(s, at, x):
    gamma, beta, wr, br = vectors(s, at, "weight bias weight_readjust bias_readjust")
    a = (wr * x.mean((2, 3)) + br).sigmoid()
    unit = batch_norm(x, s[f"{at}running_mean"], s[f"{at}running_var"])
    return unit * (gamma * a)[..., None, None] + beta[:, None, None]


def spem(s, at, x):
    w1, b1, w2, b2, p = vectors(s, at, "w1 b1 w2 b2 p")
    m, q = x.amax((2, 3)), x.amin((2, 3))
    share = p**2 / (p[0] ** 2 + p[1] ** 2)
    u = share[0] * m + share[1] * q
    r = ((w2 * m + b2) + (w2 * q + b2)).sigmoid()
    return (w1 * (w2 * u + b2) + b1).sigmoid() * r


def se_logits(s, at, x, first="fc1", second="fc2"):
    return dense(s, at + second, relu(dense(s, at + first, x.mean((2, 3)))))


def se(s, at, x):
    return se_logits(s, at, x).sigmoid()


def sem(s, at, x):
    d = x.mean((2, 3))
    kernel = s[f"{at}conv.weight"]
    w1, b1 = vectors(s, at, "w1 b1")
    o2 = conv1d(d[:, None], kernel, padding=kernel.shape[2] // 2)[:, 0]
    a = dense(s, f"{at}switch_fc", d).sigmoid()
    first = (a[:, 0:1] * se_logits(s, at, x)).sigmoid()
    return first * (a[:, 1:2] * o2).sigmoid() * (a[:, 2:3] * (w1 * d + b1)).sigmoid()


def lsas(s, at, x):
    logits = se_logits(s, at, x)
    multiplier = logits.sigmoid()
    for suffix in ("", "2", "3", "4", "5"):
        if f"{at}w{suffix}" in s:
            w, b = vectors(s, at, f"w{suffix} b{suffix}")
            logits = w * logits + b
            multiplier = multiplier * logits.sigmoid()
    return multiplier


def dianet(s, at, x, state):
    """One step; returns the new hidden and cell states."""
    hidden, cell = state
    inputs = dense(s, f"{at}w_ih.0.seq.2", relu(dense(s, f"{at}w_ih.0.seq.0", x.mean((2, 3)))))
    past = dense(s, f"{at}w_hh.0.seq.2", relu(dense(s, f"{at}w_hh.0.seq.0", hidden)))
    i, f, g, o = (inputs + past).chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.sigmoid(), cell


def asr(s, at, x):
    """The norm and its gate of the learned vector."""
    multiplier = se(s, f"{at}attention_module.", s[f"{at}vector"])
    return normal(s, f"{at}bn.", x) * multiplier[..., None, None]


def end_of_branch(method, s, block, x, state):
    """From conv3's output to the gated map and DIANet's new state."""
    layer = block.partition(".")[0]
    if method in ("asr", "iebn"):
        return {"asr": asr, "iebn": iebn}[method](s, f"{block}.bn3.", x), state
    x = normal(s, f"{block}.bn3.", x)
    if method == "dianet":
        state = dianet(s, f"{layer}.lstm.", x, state or (x.new_zeros(x.shape[:2]),) * 2)
        return x * state[0][..., None, None], state
    if method == "lsas" and layer != "layer3":
        return x, state
    gate = {"spem": spem, "se": se, "sem": sem, "lsas": lsas}[method]
    return x * gate(s, f"{block}.", x)[..., None, None], state


def logits(method: str, s: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the network computes, (N, 10), from images (N, 3, H, W)."""
    norm = iebn if method == "iebn" else normal
    x = relu(norm(s, "bn1.", conv2d(x, s["conv1.weight"], padding=1)))
    for layer, stage_stride in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
        state = None
        for index in count():
            at, stride = f"{layer}.{index}.", stage_stride if index == 0 else 1
            if f"{at}conv1.weight" not in s:
                break
            z = relu(norm(s, f"{at}bn1.", conv2d(x, s[f"{at}conv1.weight"])))
            z = conv2d(z, s[f"{at}conv2.weight"], stride=stride, padding=1)
            z = conv2d(relu(norm(s, f"{at}bn2.", z)), s[f"{at}conv3.weight"])
            z, state = end_of_branch(method, s, at[:-1], z, state)
            if index == 0:
                x = conv2d(x, s[f"{at}downsample.0.weight"], stride=stride)
                x = normal(s, f"{at}downsample.1.", x)
            x = relu(z + x)
    return dense(s, "fc", x.mean((2, 3)))
