"""Random feature maps for the differential tests, and what all their cases need.

A case follows from its number and the seed alone.
"""

from contextlib import contextmanager
from functools import partial

import torch
from proof import SEED

from spem import kernels
from spem.kernels.eager import EAGER
from spem.kernels.reference import Reference

LAYOUTS = ("nchw", "nchw", "nhwc", "nhwc", "sliced", "sliced nhwc", "transposed", "images", "cells")
MAGNITUDES = (1e-40, 1e-4, 1.0, 1.0, 1.0, 1e3, 1e4)
PATTERNS = ("normal", "normal", "ties", "constant", "offset", "zero channel", "spike")
LOW = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def feature_map(numbers, generator, shape, pattern, magnitude, dtype):
    """Draw (N, C, H, W), rounded to a dtype, in a random layout."""
    n, c, h, w = shape
    layout = numbers.choice(LAYOUTS)
    drawn = {
        "transposed": (n, c, w, h),
        "images": (1, c, h, w),
        "cells": (n, c, 1, 1),
        "sliced": (n, 2 * c, h + 1, w + 2),
        "sliced nhwc": (n, 2 * c, h + 1, w + 2),
    }.get(layout, shape)
    x = torch.randn(drawn, generator=generator, dtype=torch.float64)
    if pattern == "ties":
        x = x.round()
    elif pattern == "constant":
        x = x[:, :, :1, :1].expand(drawn).clone()
    elif pattern == "offset":
        x = x / 100 + 1
    elif pattern == "zero channel":
        x[:, 0] = 0
    elif pattern == "spike":
        x[..., -1, -1] += 100
    x = (x * magnitude).to(dtype)
    if layout.endswith("nhwc"):
        x = x.to(memory_format=torch.channels_last)
    if layout.startswith("sliced"):
        return x[:, ::2, 1:, 2:]
    if layout == "transposed":
        return x.transpose(2, 3)
    return x.expand(shape)


def size(numbers, single):
    if single:
        return 1, 1
    return numbers.choice([(1, 5), (6, 1), (2, 2), (4, 4), (7, 7), (3, 5), (8, 9), (13, 17)])


def draw_maps(numbers, generator, shape, dtype):
    """Draw a feature map, a residual (or None) and a cotangent, and describe them."""
    magnitude, pattern = numbers.choice(MAGNITUDES), numbers.choice(PATTERNS)
    if dtype == torch.float16 and pattern == "spike":
        magnitude = min(magnitude, 100.0)
    draw = partial(feature_map, numbers, generator, shape)
    given = {"x": draw(pattern, magnitude, dtype)}
    given["residual"] = draw("normal", 1.0, dtype) if numbers.random() < 0.5 else None
    given["cotangent"] = draw("normal", 1.0, dtype)
    return given, f"{shape} {dtype} {pattern} · {magnitude}, x {given['x'].stride()}"


def rectified(compute, given, dtype):
    """Take the cotangent away where rounding may decide on which side of 0 a result lies."""
    with torch.no_grad():
        out = compute({name: None if t is None else t.double() for name, t in given.items()})
    # Below the smallest normal number the spacing no longer shrinks, and results become 0.
    info = torch.finfo(dtype)
    near = out.abs() <= 16 * info.eps * out.abs().max().clamp(min=info.smallest_normal)
    given["cotangent"] = given["cotangent"].masked_fill(near, 0)


def double(given):
    return {
        name: t.to(torch.float64, memory_format=torch.preserve_format) if t is not None else None
        for name, t in given.items()
    }


def differentiate(out, leaves, cotangent):
    """Return the gradients of leaves, by name."""
    wanted = {name: t for name, t in leaves.items() if t is not None and t.requires_grad}
    found = torch.autograd.grad(out, [*wanted.values()], cotangent, allow_unused=True)
    return {f"d{name}": g for name, g in zip(wanted, found, strict=True)}


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def forced(backend):
    """Use a backend that need not have a name, as `kernels.use` does."""
    before, kernels._forced = kernels._forced, backend
    try:
        yield
    finally:
        kernels._forced = before


class OnePass(Reference):
    """The reference, which normalises by its own operations as kernels do."""

    def prefers_own_norm(self, x, gated):
        """See `Backend.prefers_own_norm`."""
        return x.numel() > 0


class Shifted(OnePass):
    """The reference with the variance as native.cpp has it, which may lose four bits.

    Its squares are of deviations from the mean of the first sixteenth of the positions.
    """

    def pool(self, x, wanted):
        """See `Backend.pool`."""
        pooled_map = super().pool(x, wanted)
        if "var" in wanted:
            flat = x.flatten(2)
            centred = flat - flat[..., : (flat.shape[-1] + 15) // 16].mean(-1, keepdim=True)
            var = centred.square().mean(-1) - centred.mean(-1).square()
            pooled_map.values["var"] = var.clamp(min=0)
        return pooled_map


ONE_PASS, SHIFTED = OnePass(), Shifted()


def structure_of(backend):
    """Return what does the same steps in operations of PyTorch, whose roundings are sampled."""
    return EAGER if backend is EAGER else ONE_PASS if backend.name == "triton" else SHIFTED


def check_cases(make, numbers, backends):
    """Check cases by their numbers; a failure says how to repeat it."""
    for number in numbers:
        case = make(number)
        try:
            case.check(backends)
        except Exception as error:
            error.add_note(f"SEED={SEED}, {make.__name__}({number}): {case.text}")
            raise
