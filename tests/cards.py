"""The published equations of every gate but SPEM, transcribed apart from the library.

Plain loops over channels, positions and neighbours; x is (N, C, H, W) in float64. Each function
returns the multiplier (N, C), or a map where the method has no such thing.
"""

import math

import torch
from torch import Tensor


def each(x: Tensor, value) -> Tensor:
    """`value` of every map (H, W) of a batch: (N, C)."""
    return torch.stack([torch.stack([value(plane) for plane in image]) for image in x])


def average(x: Tensor) -> Tensor:
    return each(x, lambda plane: plane.sum() / plane.numel())


def maximum(x: Tensor) -> Tensor:
    return each(x, lambda plane: plane.flatten().max(0).values)


def minimum(x: Tensor) -> Tensor:
    return each(x, lambda plane: plane.flatten().min(0).values)


def mixed(x: Tensor, share) -> Tensor:
    return share * maximum(x) + (1 - share) * minimum(x)


def squared_share(p: Tensor) -> Tensor:
    return p[0] ** 2 / (p[0] ** 2 + p[1] ** 2)


def sigma(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def relu(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, torch.zeros_like(z))


def linear(d: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = [(d * row).sum(1) for row in weight]
    rows = rows if bias is None else [row + b for row, b in zip(rows, bias, strict=True)]
    return torch.stack(rows, 1)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution by 1×1 kernels, weight (out, in, 1, 1)."""
    maps = [sum(x[:, c] * kernel[c, 0, 0] for c in range(x.shape[1])) for kernel in weight]
    maps = maps if bias is None else [m + b for m, b in zip(maps, bias, strict=True)]
    return torch.stack(maps, 1)


def batch_norm(x: Tensor, norm) -> Tensor:
    """Normalise each channel of (N, C, …) by its batch, or in evaluation by its running values."""
    out = []
    for c in range(x.shape[1]):
        values = x[:, c]
        mean, var = norm.running_mean[c], norm.running_var[c]
        if norm.training:
            mean = values.sum() / values.numel()
            var = ((values - mean) ** 2).sum() / values.numel()
        normal = (values - mean) / torch.sqrt(var + 1e-5)
        out.append(norm.weight[c] * normal + norm.bias[c])
    return torch.stack(out, 1)


def bin_of(i: int, bins: int, length: int) -> slice:
    """Positions of bin i of an adaptive average pooling."""
    return slice(math.floor(i * length / bins), math.ceil((i + 1) * length / bins))


def adaptive(x: Tensor, height: int, width: int) -> Tensor:
    rows = []
    for i in range(height):
        row = x[:, :, bin_of(i, height, x.shape[2])]
        bins = [row[..., bin_of(j, width, x.shape[3])] for j in range(width)]
        rows.append(torch.stack([b.sum((2, 3)) / (b.shape[2] * b.shape[3]) for b in bins], -1))
    return torch.stack(rows, 2)


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    rows = [math.floor(i * x.shape[2] / height) for i in range(height)]
    columns = [math.floor(j * x.shape[3] / width) for j in range(width)]
    return torch.stack([torch.stack([x[:, :, i, j] for j in columns], -1) for i in rows], 2)


def se_logits(d: Tensor, w1: Tensor, c1, w2: Tensor, c2) -> Tensor:
    return linear(relu(linear(d, w1, c1)), w2, c2)


def eca_logits(d: Tensor, omega: Tensor) -> Tensor:
    k, channels = len(omega), d.shape[1]
    columns = []
    for c in range(channels):
        near = [(j, c + j - (k - 1) // 2) for j in range(k)]
        terms = [omega[j] * d[:, i] for j, i in near if 0 <= i < channels]
        columns.append(sum(terms))
    return torch.stack(columns, 1)


def eca_kernel_size(channels: int) -> int:
    t = math.trunc(abs((math.log2(channels) + 1) / 2))
    return t if t % 2 else t + 1


def srm_style(x: Tensor, cfc: Tensor, eps=1e-5) -> Tensor:
    """z before its batch normalisation."""
    columns = []
    for c in range(x.shape[1]):
        values = x[:, c].flatten(1)
        mu = values.sum(1) / values.shape[1]
        var = ((values - mu[:, None]) ** 2).sum(1) / (values.shape[1] - 1)
        columns.append(cfc[c, 0] * mu + cfc[c, 1] * torch.sqrt(var + eps))
    return torch.stack(columns, 1)


def gct(x: Tensor, alpha, gamma, beta, mode="l2", after_relu=False, eps=1e-5) -> Tensor:
    channels = range(x.shape[1])
    if mode == "l2":
        s = [alpha[c] * torch.sqrt((x[:, c] ** 2).sum((1, 2)) + eps) for c in channels]
        across = torch.sqrt(sum(v**2 for v in s) / len(s) + eps)
    else:
        size = (lambda v: v) if after_relu else torch.abs
        s = [alpha[c] * size(x[:, c]).sum((1, 2)) for c in channels]
        across = sum(abs(v) for v in s) / len(s) + eps
    return torch.stack([1 + torch.tanh(s[c] * gamma[c] / across + beta[c]) for c in channels], 1)


def iebn(x: Tensor, norm, a: Tensor) -> Tensor:
    """A norm whose scale alone is multiplied by a (N, C), the gate of its input."""
    shift = norm.bias[:, None, None]
    return (batch_norm(x, norm) - shift) * a[..., None, None] + shift


def cbam_channel(x: Tensor, pools, w1, c1, w2, c2) -> Tensor:
    pooled = {
        "avg": average,
        "max": maximum,
        "lp": lambda x: each(x, lambda plane: torch.sqrt((plane**2).sum())),
        "lse": lambda x: each(x, lambda plane: torch.log(torch.exp(plane).sum())),
    }
    logits = sum(se_logits(pooled[name](x), w1, c1, w2, c2) for name in pools)
    return sigma(logits)


def cbam_spatial(x1: Tensor, kernel: Tensor) -> Tensor:
    """Before batch normalisation: (N, 1, H, W); kernel (1, 2, k, k), maximum first."""
    planes = [x1.max(1).values, x1.sum(1) / x1.shape[1]]
    height, width = x1.shape[2:]
    side = kernel.shape[-1]
    reach = side // 2

    def at(i: int, j: int) -> Tensor:
        terms = []
        for u in range(side):
            for v in range(side):
                h, w = i + u - reach, j + v - reach
                if 0 <= h < height and 0 <= w < width:
                    terms += [kernel[0, k, u, v] * planes[k][:, h, w] for k in range(2)]
        return sum(terms)

    rows = [torch.stack([at(i, j) for j in range(width)], -1) for i in range(height)]
    return torch.stack(rows, 1)[:, None]


def sge(x: Tensor, groups: int, a, b, eps=1e-5) -> Tensor:
    size = x.shape[1] // groups
    out = []
    for g in range(groups):
        group = x[:, g * size : (g + 1) * size]
        s = (average(group)[..., None, None] * group).sum(1)
        s = s - (s.sum((1, 2)) / s[0].numel())[:, None, None]
        std = torch.stack([torch.sqrt((m**2).sum() / (m.numel() - 1)) for m in s])
        s = s / (std + eps)[:, None, None]
        out += [group[:, i] * sigma(a[g] * s + b[g]) for i in range(size)]
    return torch.stack(out, 1)


def dianet_step(d, h, c, ih, hh) -> tuple[Tensor, Tensor]:
    """One step of the unit; ih and hh are (w1, c1, w2, c2). Returns h, c."""
    total = se_logits(d, *ih) + se_logits(h, *hh)
    width = d.shape[1]
    i, f, g, o = (total[:, k * width : (k + 1) * width] for k in range(4))
    c = sigma(f) * c + sigma(i) * torch.tanh(g)
    return sigma(o) * sigma(c), c


U_TOP = "0 0 6 0 0 1 1 4 5 1 3 0 0 0 3 2 4 6 3 5 5 2 6 5 5 3 3 4 2 2 6 1"
V_TOP = "0 1 0 5 2 0 2 0 0 6 0 4 6 3 5 2 6 3 3 3 5 1 1 2 4 2 1 1 3 0 5 3"
U_LOW = "0 0 1 1 0 2 2 1 2 0 3 4 0 1 3 0 1 2 3 4 5 0 1 2 3 4 5 6 1 2 3 4"
V_LOW = "0 1 0 1 2 0 1 2 2 3 0 0 4 3 1 5 4 3 2 1 0 6 5 4 3 2 1 0 6 5 4 3"
U_BOT = "6 1 3 3 2 4 1 2 4 4 5 1 4 6 2 5 6 1 6 2 2 4 3 3 5 5 6 2 5 5 3 6"
V_BOT = "6 4 4 6 6 3 1 4 4 5 6 5 2 2 5 1 4 3 5 0 3 1 1 2 4 2 1 1 5 3 3 3"
FREQUENCIES = {"top": (U_TOP, V_TOP), "low": (U_LOW, V_LOW), "bot": (U_BOT, V_BOT)}


def fcanet(x: Tensor, frequencies: str, size: int, w1: Tensor, w2: Tensor) -> Tensor:
    n = int(frequencies[3:])
    u, v = ([int(f) for f in text.split()][:n] for text in FREQUENCIES[frequencies[:3]])
    z = x if x.shape[2:] == (size, size) else adaptive(x, size, size)
    per_group = x.shape[1] // n
    f = []
    for c in range(x.shape[1]):
        q = c // per_group
        rows, columns = wave(u[q] * (size // 7), size), wave(v[q] * (size // 7), size)
        f.append(
            sum(z[:, c, h, w] * rows[h] * columns[w] for h in range(size) for w in range(size))
        )
    return sigma(se_logits(torch.stack(f, 1), w1, None, w2, None))


def wave(frequency: int, length: int) -> list[float]:
    factor = (1 if frequency == 0 else math.sqrt(2)) / math.sqrt(length)
    return [factor * math.cos(math.pi * frequency * (i + 0.5) / length) for i in range(length)]


def spa_icme(source: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    f = torch.cat([adaptive(source, k, k).flatten(1) for k in (1, 2, 4)], 1)
    return sigma(se_logits(f, w1, None, w2, None))


def spa_tmm_pyramid(source: Tensor, t: Tensor) -> Tensor:
    """The sum of the three levels, (N, C, 4, 4); t in the order of 4, 2 and 1 bins a side."""
    levels = (nearest(adaptive(source, k, k), 4, 4) for k in (4, 2, 1))
    return sum(weight * level for weight, level in zip(t, levels, strict=True))


def danet_position(x: Tensor, q, k, v, g) -> Tensor:
    """q, k and v are (weight, bias) of 1×1 convolutions."""
    queries, keys, values = (pointwise(x, *conv).flatten(2) for conv in (q, k, v))
    out = []
    for n in range(len(x)):
        columns = []
        for i in range(queries.shape[2]):
            energies = torch.stack([queries[n, :, i] @ key for key in keys[n].T])
            weights = torch.exp(energies) / torch.exp(energies).sum()
            columns.append((values[n] * weights).sum(1))
        out.append(torch.stack(columns, 1))
    return g * torch.stack(out).reshape(x.shape) + x


def danet_channel(x: Tensor, g) -> Tensor:
    flat = x.flatten(2)
    out = []
    for image in flat:
        rows = []
        for channel in image:
            energies = torch.stack([channel @ other for other in image])
            energies = energies.max() - energies
            weights = torch.exp(energies) / torch.exp(energies).sum()
            rows.append((weights[:, None] * image).sum(0))
        out.append(torch.stack(rows))
    return g * torch.stack(out).reshape(x.shape) + x


def hpda_loss(maps: list[Tensor], margin: float = 1.0) -> Tensor:
    """Mean over pairs of local attention maps (N, 1, H, W) of their hinge."""
    terms = []
    for j in range(len(maps)):
        for i in range(j):
            difference = maps[i] - maps[j]
            n, _, height, width = difference.shape
            hinges = []
            for k in range(n):
                d = torch.sqrt((difference[k] ** 2).sum()) / (height * width)
                hinges.append(relu(margin - d))
            terms.append(sum(hinges) / (2 * n))
    return sum(terms) / len(terms)
