"""The Triton backend: passes over feature maps on CUDA devices."""

import logging
import os
from functools import cache

import torch
from torch import Tensor

from spem.kernels import inductor
from spem.kernels.autograd import PassesBackend, Recalibration, Values
from spem.kernels.triton.backward import input_gradient, sums
from spem.kernels.triton.pool import moments, pool_stack
from spem.kernels.triton.recalibrate import recalibrate

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_EXTREMA = ("max", "min", "argmax", "argmin", "first")


@cache
def _compiles() -> bool:
    """Return whether Inductor compiles functions of tensors on the device; if not, log why."""
    try:
        device = "cpu" if INTERPRETED else "cuda"
        inductor.call(lambda x: [x + 1], "probe", [torch.zeros(2, 3, device=device)], [], 2, 3)
    except Exception as error:  # whatever a compiler and its driver may raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logging.getLogger("spem").warning("gates are not compiled: %s", reason)
        return False
    return True


class Triton(PassesBackend):
    """Triton's kernels; each excitation is compiled by Inductor at its first use."""

    name = "triton"

    def prefers_own_norm(self, x: Tensor, gated: bool) -> bool:
        """See `Backend.prefers_own_norm`: without a gate, too, one kernel replaces three."""
        return True

    def compiles_excitations(self) -> bool:
        """See `PassesBackend.compiles_excitations`."""
        return _compiles()

    def pooled_names(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """See `PassesBackend.pooled_names`; positions are integers, kept as bits of floats."""
        return ("mean", "var", *(_EXTREMA if _reads_extrema(wanted) else ()))

    def run_pool(self, x: Tensor, wanted: tuple[str, ...]) -> Tensor:
        """See `PassesBackend.run_pool`."""
        return pool_stack(x, _reads_extrema(wanted))

    def run_recalibrate(
        self,
        x: Tensor,
        coefficients: Recalibration,
        residual: Tensor | None,
        relu: bool,
        overwrite: bool = False,
    ) -> Tensor:
        """See `PassesBackend.run_recalibrate`."""
        return recalibrate(x, _contiguous(coefficients), residual, relu, overwrite)

    def run_sums(
        self,
        grad: Tensor,
        out: Tensor | None,
        x: Tensor,
        coefficients: Recalibration,
        masked: bool = True,
    ) -> tuple[Tensor | None, Tensor]:
        """See `PassesBackend.run_sums`; the first is always returned."""
        return sums(grad, out, x, _contiguous(coefficients))

    def run_input_gradient(
        self,
        x: Tensor,
        wanted: tuple[str, ...],
        stack: Tensor | None,
        gradients: Values,
        grad: Tensor | None,
        coefficients: Recalibration,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `PassesBackend.run_input_gradient`; out is not needed, see `run_sums`."""
        values = {} if stack is None else moments(stack)._asdict()
        known = {name: values.get(name) for name in ("mean", "argmax", "argmin")}
        changed = {f"d{name}": value.contiguous() for name, value in gradients.items()}
        return input_gradient(grad, x, _contiguous(coefficients), **known, **changed)


def _contiguous(coefficients: Recalibration) -> Recalibration:
    return tuple([None if t is None else t.contiguous() for t in coefficients])


def _reads_extrema(wanted: tuple[str, ...]) -> bool:
    return "max" in wanted or "min" in wanted


TRITON = Triton()
