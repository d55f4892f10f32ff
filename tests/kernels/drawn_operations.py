"""Random cases of pooling and recalibration."""

from functools import partial

import torch
from drawn_maps import (
    LOW,
    differentiate,
    double,
    draw_maps,
    rectified,
    size,
    structure_of,
    wide,
)
from proof import numbers_of
from rounding import check, moved

from spem import kernels
from spem.functional import STATISTICS
from spem.kernels.backend import Sigmoid
from spem.kernels.cpu import custom_ops
from spem.kernels.cpu.passes import COMPILED
from spem.kernels.reference import REFERENCE


class Operations:
    """Pooling, a linear function of what was pooled, and recalibration."""

    def __init__(self, number):
        numbers = numbers_of(number)
        generator = torch.Generator().manual_seed(numbers.getrandbits(62))
        n, c = numbers.choice([1, 2, 3, 5]), numbers.choice([1, 2, 3, 8, 16, 17, 33])
        shape = (n, c, *size(numbers, numbers.random() < 0.1))
        self.dtype = numbers.choice([*LOW, torch.float64])
        self.given, text = draw_maps(numbers, generator, shape, self.dtype)
        self.wanted = tuple(s for s in STATISTICS if numbers.random() < 0.6)
        self.relu, self.pooled = numbers.random() < 0.5, numbers.random() < 0.7
        self.gated = numbers.random() < 0.4
        gated = Sigmoid._fields if self.gated else ()
        for name in ("scale", "shift", *gated, *self.wanted):
            value = torch.randn((n, c), generator=generator, dtype=torch.float64)
            self.given[name] = value.to(wide(self.dtype))
        for names in (["shift"], ["slope"], ["square", "centre"]):
            if numbers.random() < 0.3:
                self.given |= dict.fromkeys(names)
        self.gradient = numbers.random() < 0.8
        self.text = f"{text}, {self.wanted}, relu {self.relu}, pooled {self.pooled}"
        self.text += f", sigmoid {self.gated}"
        self._divide_by_magnitudes()
        if self.relu:
            rectified(partial(self.compute, REFERENCE, False), self.given, self.dtype)

    def _divide_by_magnitudes(self):
        magnitude = self.given["x"].abs().max().item() or 1.0
        powers = {"slope": 1, "square": 2, "centre": -1, "var": 2}
        for name in (*self.wanted, *powers):
            if self.given.get(name) is not None:
                self.given[name] /= max(magnitude ** powers.get(name, 1), 1e-30)

    def compute(self, backend, relu, given, values=None):
        x, scale = given["x"], given["scale"]
        rest = (given["shift"], given["residual"], relu)
        sigmoid = Sigmoid(*map(given.get, Sigmoid._fields)) if self.gated else None
        if not self.pooled:
            return backend.recalibrate(x, scale, *rest, sigmoid=sigmoid)
        pooled_map = backend.pool(x, self.wanted)
        for name, value in pooled_map.values.items():
            scale = scale + given[name] * value
        if values is not None:
            values.update(pooled_map.values)
        return pooled_map.recalibrate(scale, *rest, sigmoid=sigmoid)

    def run(self, backend, given):
        leaves = {
            name: None if t is None else t.detach().requires_grad_(self.gradient)
            for name, t in given.items()
            if name != "cotangent"
        }
        values = {}
        with torch.set_grad_enabled(self.gradient):
            out = self.compute(backend, self.relu, leaves, values)
        found = {"out": out.detach()} | {name: v.detach() for name, v in values.items()}
        if self.gradient:
            found |= differentiate(out, leaves, given["cotangent"])
        return found

    def check(self, backends):
        """Check the operations by some backends against those in float64."""
        truth = self.run(REFERENCE, double(self.given))
        naive = self.run(REFERENCE, self.given)
        for name in backends:
            backend = custom_ops.CUSTOM_OPS if name == "custom" else kernels._load(name)
            if name == "custom" and not (self.gradient and COMPILED.serves(self.given["x"])):
                continue
            if not backend.serves(self.given["x"]):
                continue
            actual = self.run(backend, self.given)
            for extremum in truth.keys() & {"max", "min"}:
                assert torch.equal(actual[extremum].double(), truth[extremum]), extremum
            low = self.dtype if name == "eager" else wide(self.dtype)
            structure = structure_of(backend)
            sample = partial(moved, partial(self.run, structure), double(self.given))
            check(
                actual,
                naive if self.dtype != torch.float64 else truth,
                truth,
                partial(sample, low),
                name,
            )
