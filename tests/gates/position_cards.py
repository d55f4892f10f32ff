"""The published equations of gates whose multipliers differ between positions, and of later ones.

Transcribed apart from the library, in loops over images, channels and positions where these say
more than tensor operations. Each function takes a gate, for its parameters, and x (N, C, H, W) in
float64, and returns the gated x.
"""

import math

import torch
from cards import batch_norm, linear, pointwise, relu, sigma
from torch import Tensor
from torch.nn.functional import conv2d


def mean(values: Tensor) -> Tensor:
    return values.sum() / values.numel()


def means(x: Tensor) -> Tensor:
    return torch.stack([torch.stack([mean(plane) for plane in image]) for image in x])


def hard_sigma(v: Tensor) -> Tensor:
    return torch.clamp(torch.clamp(v + 3, min=0), max=6) / 6


def row_means(x: Tensor) -> Tensor:
    return torch.stack([x[:, :, i].sum(2) / x.shape[3] for i in range(x.shape[2])], 2)


def column_means(x: Tensor) -> Tensor:
    return torch.stack([x[:, :, :, j].sum(2) / x.shape[2] for j in range(x.shape[3])], 2)


def over_positions(logits: Tensor) -> Tensor:
    """Softmax over the positions of (N, K, H, W)."""
    shares = torch.exp(logits - logits.amax((2, 3), keepdim=True))
    return shares / shares.sum((2, 3), keepdim=True)


def layer_norm(z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    rows = []
    for row in z:
        var = ((row - mean(row)) ** 2).sum() / row.numel()
        rows.append((row - mean(row)) / torch.sqrt(var + eps) * weight + bias)
    return torch.stack(rows)


def plane_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Each map (H, W) of each image normalised by itself."""
    out = []
    for image in x:
        planes = []
        for c, plane in enumerate(image):
            centred = plane - mean(plane)
            root = torch.sqrt(mean(centred**2) + eps)
            planes.append(weight[c] * centred / root + bias[c])
        out.append(torch.stack(planes))
    return torch.stack(out)


def strips(conv, x: Tensor) -> Tensor:
    """A 1×1 convolution of (N, C, L)."""
    return pointwise(x[..., None], conv.weight[..., None], conv.bias)[..., 0]


def taps(z: Tensor, kernel: Tensor) -> Tensor:
    """Correlation of (N, L) with a short kernel, zeros outside."""
    half, length = len(kernel) // 2, z.shape[1]
    columns = []
    for i in range(length):
        near = [(j, i + j - half) for j in range(len(kernel)) if 0 <= i + j - half < length]
        columns.append(sum(kernel[j] * z[:, at] for j, at in near))
    return torch.stack(columns, 1)


def coordatt(g, x, **_):
    u = torch.cat([row_means(x), column_means(x)], 2)
    u = batch_norm(strips(g.conv1, u), g.bn1)
    u = u * hard_sigma(u)
    a = sigma(strips(g.conv_h, u[:, :, : x.shape[2]]))
    b = sigma(strips(g.conv_w, u[:, :, x.shape[2] :]))
    return torch.einsum("ncij,nci,ncj->ncij", x, a, b)


def simam(g, x, e_lambda=1e-4, **_):
    d = (x - means(x)[..., None, None]) ** 2
    v = d.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
    return x * sigma(d / (4 * (v + e_lambda)) + 0.5)


def ese(g, x, activation="hard", **_):
    logits = linear(means(x), g.fc.weight, g.fc.bias)
    return x * (hard_sigma(logits) if activation == "hard" else sigma(logits))[..., None, None]


def gc(g, x, pooling="att", fusion="add", eps=1e-5, **_):
    shares = torch.ones_like(x[:, :1]) / (x.shape[2] * x.shape[3])
    if pooling == "att":
        shares = over_positions(pointwise(x, g.mask.weight, g.mask.bias))
    context = (x * shares).sum((2, 3))

    def transform(t):
        z = layer_norm(linear(context, t.fc1.weight, t.fc1.bias), t.norm.weight, t.norm.bias, eps)
        return linear(relu(z), t.fc2.weight, t.fc2.bias)[..., None, None]

    y = x if fusion == "add" else x * sigma(transform(g.mul))
    return y if fusion == "mul" else y + transform(g.add)


def triplet(g, x, spatial=True, **_):
    def gate(plane, t):
        both = torch.stack([t.max(1).values, t.sum(1) / t.shape[1]], 1)
        size = plane.conv.weight.shape[-1]
        return sigma(batch_norm(conv2d(both, plane.conv.weight, padding=size // 2), plane.bn))

    first = gate(g.cw, x.permute(0, 2, 1, 3))[:, 0]  # (N, C, W)
    second = gate(g.hc, x.permute(0, 3, 2, 1))[:, 0]  # (N, H, C)
    y = x * first[:, :, None, :] + x * second.transpose(1, 2)[..., None]
    return (y + x * gate(g.hw, x)) / 3 if spatial else y / 2


def ema(g, x, factor, **_):
    width, height = x.shape[1] // factor, x.shape[2]
    out = []
    for group in x.split(width, 1):
        u = sigma(strips(g.conv1x1, torch.cat([row_means(group), column_means(group)], 2)))
        t = group * u[:, :, :height, None] * u[:, :, None, height:]
        narrow = plane_norm(t, g.gn.weight, g.gn.bias)
        wide = conv2d(group, g.conv3x3.weight, g.conv3x3.bias, padding=1)
        first = torch.softmax(means(narrow), 1)[..., None, None]
        second = torch.softmax(means(wide), 1)[..., None, None]
        s = (first * wide).sum(1, keepdim=True) + (second * narrow).sum(1, keepdim=True)
        out.append(group * sigma(s))
    return torch.cat(out, 1)


def nam(g, x, **_):
    weight = g.bn.weight.detach().abs() / g.bn.weight.detach().abs().sum()
    return x * sigma(weight[:, None, None] * batch_norm(x, g.bn))


def grn(g, x, eps=1e-6, **_):
    q = torch.sqrt((x * x).sum((2, 3)))
    n = q / ((q.sum(1, keepdim=True) / q.shape[1]) + eps)
    return x * (1 + g.gamma * n)[..., None, None] + g.beta[:, None, None]


def bam(g, x, dilation=4, fuse="product", **_):
    q = linear(means(x), g.channel[0].weight, g.channel[0].bias)
    c = linear(relu(batch_norm(q, g.channel[1])), g.channel[3].weight, g.channel[3].bias)
    s = relu(batch_norm(pointwise(x, g.spatial[0].weight, g.spatial[0].bias), g.spatial[1]))
    for conv, norm in ((g.spatial[3], g.spatial[4]), (g.spatial[6], g.spatial[7])):
        z = conv2d(s, conv.weight, conv.bias, padding=dilation, dilation=dilation)
        s = relu(batch_norm(z, norm))
    s, c = pointwise(s, g.spatial[9].weight, g.spatial[9].bias), c[..., None, None]
    return x * (1 + sigma(c * s if fuse == "product" else c + s))


def sa(g, x, groups, **_):
    half = x.shape[1] // (2 * groups)
    places = []
    for group in x.split(2 * half, 1):
        first, second = group[:, :half], group[:, half:]
        first = first * sigma(g.cweight * means(first) + g.cbias)[..., None, None]
        normal = plane_norm(second, g.gn.weight, g.gn.bias)
        second = second * sigma(g.sweight[:, None, None] * normal + g.sbias[:, None, None])
        places += [*first.unbind(1), *second.unbind(1)]
    middle = len(places) // 2
    shuffled = [places[s * middle + i] for i in range(middle) for s in (0, 1)]
    return torch.stack(shuffled, 1)


def scse(g, x, fuse="max", **_):
    logits = linear(relu(linear(means(x), g.fc1.weight, g.fc1.bias)), g.fc2.weight, g.fc2.bias)
    channel = x * sigma(logits)[..., None, None]
    places = x * sigma(pointwise(x, g.conv.weight, g.conv.bias))
    return torch.maximum(channel, places) if fuse == "max" else channel + places


def ge(g, x, variant="minus", extent=None, **_):
    if extent is not None:
        return x * sigma(near(x, extent))
    if variant == "minus":
        return x * sigma(means(x))[..., None, None]
    q = batch_norm((x * g.kernel).sum((2, 3)), g.bn)
    if variant == "plus":
        hidden = relu(linear(relu(q), g.fc1.weight, g.fc1.bias))
        q = linear(hidden, g.fc2.weight, g.fc2.bias)
    return x * sigma(q)[..., None, None]


def near(x: Tensor, extent: int) -> Tensor:
    """Means of windows of 2e − 1 at a stride of e, of valid positions, at each position."""
    height, width = x.shape[2:]
    high, wide = ((length - 1) // extent + 1 for length in (height, width))
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            top, left = (i * high // height) * extent, (j * wide // width) * extent
            window = x[:, :, max(0, top - extent + 1) : top + extent]
            window = window[..., max(0, left - extent + 1) : left + extent]
            row.append(window.sum((2, 3)) / (window.shape[2] * window.shape[3]))
        rows.append(torch.stack(row, 2))
    return torch.stack(rows, 2)


def ela(g, x, skip=False, eps=1e-5, **_):
    def gate(z, conv, norm):
        channels = [taps(z[:, c], conv.weight[c, 0]) for c in range(z.shape[1])]
        z = torch.stack(channels, 1)
        images = []
        for image in z:
            var = mean((image - mean(image)) ** 2)
            normal = (image - mean(image)) / torch.sqrt(var + eps)
            images.append(norm.weight[:, None] * normal + norm.bias[:, None])
        z = torch.stack(images)
        return sigma(z * sigma(z))

    a, b = gate(row_means(x), g.conv_h, g.norm_h), gate(column_means(x), g.conv_w, g.norm_w)
    y = x * a[..., None] * b[:, :, None]
    return y + x if skip else y


def lct(g, x, groups=16, eps=1e-5, **_):
    rows = []
    for d in means(x):
        normal = []
        for group in d.split(len(d) // groups):
            var = mean((group - mean(group)) ** 2)
            normal.append((group - mean(group)) / torch.sqrt(var + eps))
        rows.append(sigma(g.w * torch.cat(normal) + g.b))
    return x * torch.stack(rows)[..., None, None]


def psa(g, x, layout="parallel", **_):
    def flat(layer):  # the linear layer of the query's mean is a 1×1 convolution, too
        weight = layer.weight
        return weight if weight.dim() == 4 else weight[..., None, None]

    def channel_gate(x):
        a = over_positions(pointwise(x, flat(g.channel_query)))
        z = (pointwise(x, flat(g.channel_value)) * a).sum((2, 3))
        if layout == "parallel":
            return sigma(linear(z, g.up[0].weight))[..., None, None]
        u = layer_norm(linear(z, g.up[0].weight, g.up[0].bias), g.up[1].weight, g.up[1].bias, 1e-5)
        return sigma(linear(relu(u), g.up[3].weight, g.up[3].bias))[..., None, None]

    def place_gate(x):
        p = means(pointwise(x, flat(g.place_query)))[..., None, None]
        t = pointwise(x, flat(g.place_value))
        if layout == "parallel":
            return sigma(over_positions((p * t).sum(1, keepdim=True)))
        return sigma((p * over_positions(t)).sum(1, keepdim=True))

    if layout == "parallel":
        return x * channel_gate(x) + x * place_gate(x)
    x = x * channel_gate(x)
    return x * place_gate(x)


def mca(g, x, channel_gate=True, **_):
    def gate(axis, d):
        others = tuple(i for i in (1, 2, 3) if i != d)
        m = x.sum(others) / math.prod(x.shape[i] for i in others)
        s = torch.sqrt(x.var(others, correction=1))
        p = sigma(axis.weight)
        g = sigma(taps((0.5 + p[0]) * m + (0.5 + p[1]) * s, axis.conv.weight[0, 0]))
        return g.reshape([x.shape[i] if i in (0, d) else 1 for i in range(4)])

    both = gate(g.h_cw, 2) + gate(g.w_hc, 3)
    return x * (both + gate(g.c_hw, 1)) / 3 if channel_gate else x * both / 2


CARDS = {
    card.__name__: card
    for card in (
        coordatt, simam, ese, gc, triplet, ema, nam, grn, bam, sa, scse, ge, ela, lct, psa, mca,
    )
}  # fmt: skip
