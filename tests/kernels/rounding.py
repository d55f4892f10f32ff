"""How far a result may be from that in float64: the rule of `parity`, for single, small cases.

The rule allows twice the error of PyTorch at the same precision and a few ulp. In one small case
PyTorch may be exact by luck, or the result may hang on a difference of large numbers. Only then
its error is not observed but sampled, by Monte Carlo arithmetic (Parker, 1997): the case is
computed in float64 again, and every operation moves its result by the rounding error of the
precision, up or down. How far the end moves is what rounding does to this case, however it is
computed.
"""

import math
import random

import torch
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

SAMPLES = 12
ULPS = 4
# Their results are compared with what they were taken from.
_SELECTIONS = ("max", "min", "amax", "amin", "max_pool2d_with_indices")
_SUMS = ("sum", "mean", "mm", "addmm", "bmm", "baddbmm", "convolution")
_IN_STEPS = get_decompositions(
    [torch.ops.aten.native_batch_norm, torch.ops.aten.native_batch_norm_backward]
)


def _var_mean(x, dim, *, correction=1, keepdim=False):
    # In two steps: the variance of equal numbers is the square of the mean's error.
    mean = x.mean(dim, keepdim=True)
    squares = (x - mean).square().sum(dim, keepdim=keepdim)
    length = x.numel() / mean.numel()
    return squares / max(length - correction, 0), mean if keepdim else mean.squeeze(dim)


_IN_STEPS[torch.ops.aten.var_mean.correction] = _var_mean


class Rounding(TorchDispatchMode):
    """Moves the result of every operation in float64 as rounding to a dtype does, up or down.

    The terms of a sum move as the partial sums do in which they are: log2(terms) of them, if it is
    formed in parts; as many as terms in PyTorch's batch norm, which adds one after the other. Equal
    numbers of a tensor move alike: ties stay ties, and the errors of equal terms add up.
    """

    def __init__(self, dtype, seed):
        super().__init__()
        info = torch.finfo(dtype)
        self.relative, self.absolute = info.eps / 2, info.eps * info.smallest_normal / 2
        self.numbers, self.of_norms = random.Random(seed), False

    def move(self, t, roundings=1):
        """Return a moved copy of a tensor of float64; any other tensor as it is."""
        if t.dtype != torch.float64:
            return t
        signs = 1 + 2 * ((t.view(torch.int64) * (self.numbers.getrandbits(62) | 1)) >> 63)
        moved = t + roundings * signs * (self.relative * t + self.absolute * t.sign())
        return torch.where(moved * t < 0, 0, moved)  # no rounding changes a sign

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Call an operation and move what it returns, views of its arguments apart."""
        kwargs = kwargs or {}
        if function in _IN_STEPS:
            return self._take_steps(_IN_STEPS[function], args, kwargs)
        name = function._schema.name.removeprefix("aten::")
        if name in _SUMS:
            args = self._move_terms(name, args, function(*args, **kwargs))
        result = function(*args, **kwargs)
        if name in _SELECTIONS or not all(_is_new_or_written(r) for r in function._schema.returns):
            return result
        return tree_map_only(torch.Tensor, lambda t: t.copy_(self.move(t)), result)

    def _take_steps(self, steps, args, kwargs):
        before, self.of_norms = self.of_norms, True
        with self:
            result = steps(*args, **kwargs)
        self.of_norms = before
        return result

    def _move_terms(self, name, args, results):
        results = results if isinstance(results, tuple) else [results]
        terms = max(t.numel() for t in args if isinstance(t, torch.Tensor))
        length = max(1, terms / min([t.numel() for t in results if t.numel()], default=terms))
        roundings = length if self.of_norms else 1 + math.log2(length)
        return tree_map_only(torch.Tensor, lambda t: self.move(t, roundings), args)


def _is_new_or_written(returned):
    return returned.alias_info is None or returned.alias_info.is_write


def moved(compute, given, dtype, seed):
    """Return the results of a computation in float64 whose operations round to a dtype."""
    with torch.no_grad():
        moved = Rounding(dtype, seed)
        given = {name: None if t is None else moved.move(t) for name, t in given.items()}
    with Rounding(dtype, seed + 1):
        return compute(given)


def check(actual, naive, truth, sample, what):
    """Check all results of a case.

    Args:
        actual: tensors by name.
        naive: the same by separate PyTorch operations at the same precision, or `truth`.
        truth: the same in float64.
        sample: returns the same in float64 under the rounding errors of one seed.
        what: begins the message.
    """
    assert actual.keys() == truth.keys(), f"{what}: {sorted(actual)} for {sorted(truth)}"
    above = {}
    for name, value in truth.items():
        if value is None or actual[name] is None:
            assert value is actual[name], f"{what}: {name} is {actual[name]} for {value}"
        elif reason := _excess(actual[name], naive[name], value, 0.0):
            above[name] = reason
    distances = dict.fromkeys(above, 0.0)
    for seed in range(SAMPLES if above else 0):
        found = sample(2 * seed)
        for name in list(above):
            distances[name] = max(distances[name], _distance(found[name], truth[name]))
            above[name] = _excess(actual[name], naive[name], truth[name], distances[name])
            if not above[name]:
                del above[name]
        if not above:
            return
    assert not above, f"{what}: {above}"


def _excess(actual, naive, truth, distance):
    """Return by what a tensor misses the rule; empty where it keeps it."""
    if actual.shape != truth.shape:
        return f"{tuple(actual.shape)} for {tuple(truth.shape)}"
    if not truth.numel():
        return ""
    info, largest = torch.finfo(actual.dtype), truth.abs().max().item()
    if not largest < info.max / 4:
        return ""  # float16 cannot hold it, or the sums on the way to it
    # The spacing of numbers, which below the smallest normal number no longer shrinks.
    ulp = max(info.eps * largest, info.eps * info.smallest_normal)
    allowed = 2 * max(_distance(naive, truth), distance) + ULPS * ulp
    error = _distance(actual, truth)
    return "" if error <= allowed else f"error {error:.3e}, allowed {allowed:.3e}"


def _distance(one, other):
    distance = (one.double() - other.double()).abs().max().item()
    return float("inf") if distance != distance else distance
