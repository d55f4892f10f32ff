"""ASR: the multipliers of a learned vector, constant after training: the norm can take them in."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_switch
from spem._messages import shorten
from spem.functional import Pooled
from spem.gates.gate import Gate
from spem.gates.registry import create_gate
from spem.kernels.reference import upcast

_ATTENTIONS = ("se", "eca", "ie", "sem", "lsas", "spem")


class ASR(Gate):
    """Attention-alike Structural Re-parameterization.

    The multiplier is that of another gate for a learned vector ψ (1, C) in the place of the pooled
    values: the same for every image, so that `spem.deploy` folds it into the norm.
    C parameters and those of the gate.

    Args:
        channels: C.
        attention: the gate that reads ψ: "se", "eca", "ie", "sem", "lsas" or "spem". Gates that
            need several positions or a batch (SRM, SGE) have no value for a single vector.
        attention_options: its options.
        both: put an ordinary gate of the same kind behind, as the paper's ASR + SE does.
        init: "paper", or "identity": that of the inner gates.

    Raises:
        ValueError: the attention is unknown, or its options are not allowed.

    Source: Zhong, Huang, Wen, Qin and Lin, "Attention-alike Structural Re-parameterization" (arXiv
        2304.06345).
    """

    def __init__(
        self,
        channels: int,
        *,
        attention: str = "se",
        attention_options: Mapping[str, Any] | None = None,
        both: bool = False,
        init: str = "paper",
    ):
        super().__init__(channels, init)
        check_choice("attention of ASR", attention, _ATTENTIONS)
        check_switch("both", both)
        options = {} if attention_options is None else attention_options
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise ValueError(
                f"attention_options is {shorten(attention_options)}, must be a mapping of names"
            )
        options = dict(options)
        if options.setdefault("init", init) != init:
            raise ValueError(
                f"attention_options has init={shorten(options['init'])}, ASR init={shorten(init)}"
            )
        self.vector = nn.Parameter(torch.full((1, channels), 0.1))
        self.attention = cast(Gate, create_gate(attention, channels, **options))
        self.behind = cast(Gate, create_gate(attention, channels, **options)) if both else None
        self.rest_options = (attention, dict(attention_options or {})) if both else None
        self.statistics = () if self.behind is None else self.behind.statistics

    def constant_part(self) -> tuple[Tensor, Gate | None]:
        """Return the multiplier of ψ times the gain, (C,), and the gate behind, which stays."""
        return self.gain * self._constant()[0], self.behind

    def _constant(self) -> Tensor:
        """Return the multiplier of ψ, (1, C), the same for every image."""
        vector = upcast(self.vector)
        pooled = Pooled(vector, torch.zeros_like(vector), vector, vector, count=1)
        return self.attention.multiplier(pooled)

    @property
    def reads_statistics_only(self) -> bool:
        """Whether the gate behind does."""
        return self.behind is None or self.behind.reads_statistics_only

    def pool_map(self, x: Tensor) -> Pooled:
        """Pool as the gate behind does."""
        return super().pool_map(x) if self.behind is None else self.behind.pool_map(x)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers before the gain: (1, C), or (N, C) with a gate behind."""
        constant = self._constant()
        if self.behind is None:
            return constant
        after = pooled.affine(constant[0], torch.zeros_like(constant[0]))
        return constant * self.behind.multiplier(after)
