"""Networks and tails made ready: checked against the truth, and to be timed."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spem
from benchmarks.bench.capture import captured
from benchmarks.bench.cases import DTYPES, FORMATS, Case, implementation
from benchmarks.bench.networks import build
from benchmarks.bench.operations import OperationRun
from spem.compare.timing import Work, check_parity

# Inputs are multiplied by 1 + k·eps, which moves each number by about k roundings.
_ROUNDINGS = (0, 1, -1, 2)
# Images for a check in float64 of what others write.
_FEW = 8
# Two ways to compute a network in float64 agree to far more than float32 holds.
_FLOAT64_ULPS = 1 << 20


def ready(case: Case, device: torch.device) -> "NetworkRun | OperationRun":
    """Build a case on a device."""
    return (OperationRun if case.group == "operations" else NetworkRun)(case, device)


class NetworkRun:
    """A network or a tail with its inputs.

    Args:
        case: which.
        device: where.
        inputs: the values to use, in another precision or memory format, too; None draws them.
    """

    def __init__(self, case: Case, device: torch.device, inputs: Sequence[Tensor] | None = None):
        self.case, self.device = case, device
        module = build(case).to(device)
        module = module.double() if case.dtype == "float64" else module
        self.module = nn.utils.convert_conv2d_weight_memory_format(module, FORMATS[case.format])
        self.model: Callable[..., Tensor] = self.module
        if case.way == "whole":
            self.model = torch.compile(self.module)
        given = _drawn(case, device) if inputs is None else inputs
        self.inputs = [self.fitted(x) for x in given]

    def fitted(self, x: Tensor) -> Tensor:
        """Return an input in the precision and memory format of the case, detached."""
        # The images of a network stay float32 under autocast.
        narrow = self.case.group == "tail" or self.case.dtype == "float64"
        x = x.detach().to(DTYPES[self.case.dtype] if narrow else torch.float32)
        x = x.contiguous(memory_format=FORMATS[self.case.format])
        return x.requires_grad_(self.case.group == "tail")

    def check(self) -> None:
        """Raise unless output and gradients are as exact as those of separate operations.

        A network amplifies roundings by chance, so separate operations are run in both memory
        formats and with inputs rounded otherwise, too: the largest of their errors counts. What
        others write computes the same function, but not in the precision that is promised here:
        it is checked in float64, on a few images.

        Raises:
            RedCaseError: they are not.
        """
        plain = replace(self.case, form="torch", way="reference")
        if self.case.form in ("today", "timm"):
            few = (min(self.case.shape[0], _FEW), *self.case.shape[1:])
            plain = replace(plain, dtype="float64", shape=few)
            truth = NetworkRun(plain, self.device).results()
            foreign = replace(plain, form=self.case.form, way="eager")
            found = NetworkRun(foreign, self.device).results()
            check_parity(found, [truth], truth, order=2, ulps=_FLOAT64_ULPS)
            return
        truth = _truth(plain, self.device)
        check_parity(self.results(), _naive(plain, self.device), truth, order=2)

    def results(self) -> dict[str, Tensor]:
        """Run once and return what is compared: the output and, but in inference, gradients."""
        named = [(f"input {i}", x) for i, x in enumerate(self.inputs)]
        named += self.module.named_parameters()
        with implementation(self.case):
            out = self._in_its_way(lambda: self._once([x for _, x in named]))
        found = {f"gradient of {name}": x.grad for name, x in named if x.grad is not None}
        for _, x in named:
            x.grad = None
        return {"output": out.detach(), **found}

    def _in_its_way(self, run: Callable[[], Tensor]) -> Tensor:
        """Run, or replay what was captured of it, and return the result."""
        if self.case.way != "graph":
            return run()
        outs = []
        captured(lambda: outs.append(run()))()
        return outs[-1]

    def _once(self, leaves: Iterable[Tensor]) -> Tensor:
        """Return the output and, but in inference, leave gradients behind."""
        for leaf in leaves:
            leaf.grad = None
        out = self._forward()
        if self.case.group == "training":
            self._loss(out).backward()
        elif self.case.group == "tail":
            out.backward(_gradient(out))
        return out

    def _forward(self) -> Tensor:
        enabled = self.case.dtype not in ("float32", "float64")
        dtype = DTYPES[self.case.dtype] if enabled else None
        with (
            torch.set_grad_enabled(self.case.group != "inference"),
            torch.autocast(self.device.type, dtype, enabled=enabled),
        ):
            return self.model(*self.inputs)

    def _loss(self, out: Tensor) -> Tensor:
        labels = torch.arange(len(out), device=self.device) % out.shape[1]
        return F.cross_entropy(out, labels) + spem.auxiliary_loss(self.module)

    def work(self) -> Work:
        """Return what is timed: a step of training, a forward, or one with its backward."""
        if self.case.group == "training":
            run = self._training_step()
        elif self.case.subject == "forward and backward":
            run = self._both_ways(_gradient(self.inputs[0]))
        else:
            run = self._forward

        def inside() -> object:
            with implementation(self.case):
                return run()

        timed = captured(inside) if self.case.way == "graph" else inside
        return lambda: timed

    def _training_step(self) -> Callable[[], object]:
        settings: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-4}
        optimizer = torch.optim.SGD(self.module.parameters(), 1e-3, **settings)

        def step() -> None:
            self._loss(self._forward()).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _both_ways(self, gradient: Tensor) -> Callable[[], object]:
        wanted = [*self.inputs, *self.module.parameters()]
        return lambda: torch.autograd.grad(self._forward(), wanted, gradient)

    def passes(self) -> int | None:
        """Return how often the map must move, of a tail (see docs/how-it-works.md)."""
        if self.case.group != "tail":
            return None
        # Forward: read x twice and the residual once, write once. Backward: read dout, out and x,
        # write d; read d and x, write dx.
        return 4 if self.case.subject == "forward" else 11

    def map_bytes(self) -> int:
        """Return the bytes of one pass over the input."""
        return math.prod(self.case.shape) * DTYPES[self.case.dtype].itemsize


# Cases of one gate follow each other.
@lru_cache(maxsize=1)
def _truth(plain: Case, device: torch.device) -> dict[str, Tensor]:
    inputs = NetworkRun(plain, device).inputs
    # What a network keeps for its backward would not fit in float64 beside 16 bits.
    enough = plain.group == "training" and plain.dtype != "float32"
    wide = replace(plain, dtype="float32" if enough else "float64")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return NetworkRun(wide, device, inputs).results()


@lru_cache(maxsize=1)
def _naive(plain: Case, device: torch.device) -> list[dict[str, Tensor]]:
    found = []
    for layout in FORMATS:
        run = NetworkRun(replace(plain, format=layout), device)
        drawn = run.inputs
        for k in _ROUNDINGS:
            run.inputs = [run.fitted(x * (1 + k * torch.finfo(x.dtype).eps)) for x in drawn]
            found.append(run.results())
    return found


def _drawn(case: Case, device: torch.device) -> list[Tensor]:
    """Return the images, or x and the residual."""
    generator = torch.Generator(device).manual_seed(1)
    number = 2 if case.group == "tail" else 1
    dtype = DTYPES[case.dtype] if number == 2 else torch.float32
    return [
        torch.randn(case.shape, generator=generator, device=device).to(dtype) for _ in range(number)
    ]


def _gradient(out: Tensor) -> Tensor:
    """Return the gradient of an output, the same values in every form."""
    generator = torch.Generator(out.device).manual_seed(2)
    drawn = torch.randn(out.shape, generator=generator, device=out.device)
    return torch.empty_like(out, requires_grad=False).copy_(drawn)
