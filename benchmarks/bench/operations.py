"""The two operations on feature maps: checked against the reference, and to be timed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import formulations
from benchmarks.bench.cases import DTYPES, FORMATS, Case, implementation
from spem.compare.timing import Work, check_parity
from spem.functional import pool, recalibrate

# Reads and writes of the map that cannot be avoided.
_PASSES = {"pool": 1, "pool backward": 2, "recalibrate": 3, "recalibrate backward": 5}


class OperationRun:
    """`pool` with all statistics, or `recalibrate` with shift, residual and ReLU; or its backward.

    Args:
        case: which.
        device: where.
        inputs: the values to use, in another precision or memory format, too; None draws them.
    """

    def __init__(self, case: Case, device: torch.device, inputs: Sequence[Tensor] | None = None):
        self.case, self.device = case, device
        self.backward = case.subject.endswith("backward")
        given = _drawn(case, device) if inputs is None else inputs
        self.inputs = [self._fitted(x) for x in given]
        self.pools = case.subject.startswith("pool")
        if case.form == "today":
            today = formulations.pool if self.pools else formulations.recalibrate
            self.operation: Callable[..., object] = today
        else:
            self.operation = _pool if self.pools else _recalibrate

    def _fitted(self, x: Tensor) -> Tensor:
        x = x.detach()
        if x.dim() == 4:
            dtype = DTYPES[self.case.dtype]
            x = x.to(dtype).contiguous(memory_format=FORMATS[self.case.format])
        elif self.case.dtype == "float64":
            x = x.double()
        return x.requires_grad_(self.backward)

    def check(self) -> None:
        """Raise RedCaseError unless the results are as exact as those of separate operations."""
        plain = replace(self.case, form="ours", way="reference")
        naive = OperationRun(plain, self.device, self.inputs)
        if not self.pools:
            naive.operation = _separate
        wide = replace(plain, dtype="float64")
        truth = OperationRun(wide, self.device, self.inputs).results()
        check_parity(self.results(), [naive.results()], truth, order=math.inf)

    def results(self) -> dict[str, Tensor]:
        """Return the outputs and, of a backward, the gradients of the inputs."""
        with implementation(self.case):
            outs = self._forward()
            found = {f"output {i}": out.detach() for i, out in enumerate(outs)}
            if self.backward:
                gradients = torch.autograd.grad(outs, self.inputs, _gradients(outs))
                found |= {f"gradient of input {i}": g for i, g in enumerate(gradients)}
        return found

    def _forward(self) -> tuple[Tensor, ...]:
        out = self.operation(*self.inputs)
        return out if isinstance(out, tuple) else (out,)  # pyright: ignore[reportReturnType]

    def work(self) -> Work:
        """Return what is timed: the forward, or the backward behind an untimed forward."""
        if not self.backward:
            return lambda: self._inside(self._forward)
        with implementation(self.case):
            gradients = _gradients(self._forward())

        def prepare() -> Callable[[], object]:
            with implementation(self.case):
                outs = self._forward()
            return self._inside(lambda: torch.autograd.grad(outs, self.inputs, gradients))

        return prepare

    def _inside(self, run: Callable[[], object]) -> Callable[[], object]:
        def inside() -> object:
            with implementation(self.case):
                return run()

        return inside

    def passes(self) -> int:
        """Return how often the map must move."""
        return _PASSES[self.case.subject]

    def map_bytes(self) -> int:
        """Return the bytes of one pass over the map."""
        return math.prod(self.case.shape) * DTYPES[self.case.dtype].itemsize


def _pool(x: Tensor) -> tuple[Tensor, ...]:
    pooled = pool(x)
    return tuple(value for value in pooled[:4] if value is not None)


def _recalibrate(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
    return recalibrate(x, scale, shift, residual, relu=True)


def _separate(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
    """Compute what `recalibrate` does, every step rounded to the dtype of x."""
    scale, shift = (value.to(x.dtype)[:, :, None, None] for value in (scale, shift))
    return (x * scale + shift + residual).relu()


def _drawn(case: Case, device: torch.device) -> list[Tensor]:
    """Return x, or x, scale, shift and residual."""
    generator = torch.Generator(device).manual_seed(1)
    shapes = [case.shape]
    if not case.subject.startswith("pool"):
        shapes += [case.shape[:2], case.shape[:2], case.shape]
    drawn = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    return [x.to(DTYPES[case.dtype]) if x.dim() == 4 else x for x in drawn]


def _gradients(outs: tuple[Tensor, ...]) -> list[Tensor]:
    device = outs[0].device
    generator = torch.Generator(device).manual_seed(2)
    drawn = [torch.randn(out.shape, generator=generator, device=device) for out in outs]
    return [
        torch.empty_like(out, requires_grad=False).copy_(values)
        for out, values in zip(outs, drawn, strict=True)
    ]
