"""ASR: the multipliers of a learned vector, constant after training: the norm can take them in."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spem.functional import Pooled
from spem.gates.checks import check_choice
from spem.gates.eca import ECA
from spem.gates.gate import Gate
from spem.gates.ie import IE
from spem.gates.lsas import LSAS
from spem.gates.options import build_gate
from spem.gates.se import SE
from spem.gates.sem import SEM
from spem.gates.spem import SPEM

_ATTENTIONS: dict[str, type[Gate]] = {
    "se": SE,
    "eca": ECA,
    "ie": IE,
    "sem": SEM,
    "lsas": LSAS,
    "spem": SPEM,
}


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
        if not isinstance(attention_options, Mapping | None):
            raise ValueError(f"attention_options is {attention_options!r}, must be a mapping")
        options = dict(attention_options or {})
        if options.setdefault("init", init) != init:
            raise ValueError(f"attention_options has init={options['init']!r}, ASR init={init!r}")
        self.vector = nn.Parameter(torch.full((1, channels), 0.1))
        build = partial(build_gate, attention, _ATTENTIONS[attention], channels, options)
        self.attention = build()
        self.behind = build() if both else None
        self.statistics = () if self.behind is None else self.behind.statistics

    def constant_part(self) -> tuple[Tensor, Gate | None]:
        """Return the multiplier of ψ times the gain, (C,), and the gate behind, which stays."""
        return self.gain * self._constant()[0], self.behind

    @classmethod
    def options_of_rest(cls, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """Return the name and options of the gate behind; None without one."""
        if not options.get("both", False):
            return None
        return options.get("attention", "se"), dict(options.get("attention_options") or {})

    def _constant(self) -> Tensor:
        """Return the multiplier of ψ, (1, C), the same for every image."""
        vector = self.vector
        pooled = Pooled(vector, torch.zeros_like(vector), vector, vector, count=1)
        return self.attention.multiplier(pooled)

    @property
    def fuses_with_norm(self) -> bool:
        """Whether the gate behind does."""
        return self.behind is None or self.behind.fuses_with_norm

    def pool_map(self, x: Tensor) -> Pooled:
        """Pool as the gate behind does."""
        return super().pool_map(x) if self.behind is None else self.behind.pool_map(x)

    def excite(self, pooled: Pooled) -> Tensor:
        """Return the multipliers: (1, C), or (N, C) with a gate behind."""
        constant = self._constant()
        if self.behind is None:
            return constant
        after = pooled.affine(constant[0], torch.zeros_like(constant[0]))
        return constant * self.behind.multiplier(after)
