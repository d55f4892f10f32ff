"""Attention gates: one class and one file for each method, and the registry of their names.

A gate rescales a feature map (N, C, H, W). `Attention` is the base of all gates, `Gate` of those
whose multipliers follow from the pooled values of each channel, and `DescriptorGate` of those that
begin with one number a channel. `create_gate` builds a gate by its name, `register` enters a class
of your own, and `record_gates` records the multipliers during forward passes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from spem.gates.asr import ASR
from spem.gates.attention import Attention, Place, auxiliary_loss
from spem.gates.cbam import CBAM
from spem.gates.checks import check_choice
from spem.gates.danet import DANet
from spem.gates.dianet import DIANet
from spem.gates.eca import ECA
from spem.gates.fcanet import FcaNet
from spem.gates.gate import Gate
from spem.gates.gct import GCT
from spem.gates.hpda import HPDA
from spem.gates.ie import IE
from spem.gates.iebn import IEBN
from spem.gates.lsas import LSAS
from spem.gates.options import build_gate, options_of
from spem.gates.pooling import DescriptorGate, mixing_ratios
from spem.gates.record import GateStatistics, record_gates
from spem.gates.se import SE
from spem.gates.sem import SEM
from spem.gates.sge import SGE
from spem.gates.spa import SPA
from spem.gates.spem import SPEM
from spem.gates.srm import SRM
from spem.gates.srp import SRP

__all__ = [
    "ASR",
    "CBAM",
    "ECA",
    "GATES",
    "GCT",
    "HPDA",
    "IE",
    "IEBN",
    "LSAS",
    "SE",
    "SEM",
    "SGE",
    "SPA",
    "SPEM",
    "SRM",
    "SRP",
    "Attention",
    "DANet",
    "DIANet",
    "DescriptorGate",
    "FcaNet",
    "Gate",
    "GateStatistics",
    "Place",
    "auxiliary_loss",
    "create_gate",
    "create_gate_at",
    "gate_options",
    "mixing_ratios",
    "record_gates",
    "register",
]

GATES: dict[str, type[Attention]] = {
    "spem": SPEM,
    "se": SE,
    "eca": ECA,
    "srm": SRM,
    "gct": GCT,
    "ie": IE,
    "iebn": IEBN,
    "cbam": CBAM,
    "sge": SGE,
    "fcanet": FcaNet,
    "spa": SPA,
    "dianet": DIANet,
    "sem": SEM,
    "lsas": LSAS,
    "danet": DANet,
    "srp": SRP,
    "hpda": HPDA,
    "asr": ASR,
}


def create_gate(name: str, channels: int, /, **options: Any) -> Attention:
    """Build a gate by its name.

    Args:
        name: a key of `GATES`.
        channels: C, the number of channels of the feature maps it gates.
        options: the keyword arguments of its class.

    Raises:
        ValueError: the name or an option is unknown, or a value is not allowed.

    Example:
        >>> create_gate("spem", 64, init="identity").gain
        tensor(4.)
    """
    check_choice("gate", name, GATES)
    return build_gate(name, GATES[name], channels, options)


def create_gate_at(name: str, channels: int, place: Place, options: Mapping[str, Any]) -> Attention:
    """Build a gate for a place in a network, which completes its options (`Attention.options_at`).

    Args:
        name: a key of `GATES`.
        channels: C.
        place: what is known of the place.
        options: the keyword arguments of its class.

    Raises:
        ValueError: as `create_gate`, or the gate reads a block's input and the place has none.
    """
    check_choice("gate", name, GATES)
    gate = create_gate(name, channels, **GATES[name].options_at(place, options))
    if gate.needs_source and place.source_channels is None:
        raise ValueError(
            f"gate {name!r} with {dict(options)} reads the block's input, which only "
            "the end of a residual branch of a network of create_model gives it"
        )
    return gate


def gate_options(name: str) -> dict[str, Any]:
    """Return the options of a gate and their defaults, with those of its base classes."""
    return options_of(GATES[name])


def register(name: str) -> Callable[[type[Attention]], type[Attention]]:
    """Return a decorator that enters a class of gates into `GATES` under a name.

    Args:
        name: the new key of `GATES`.

    Raises:
        ValueError: the name is taken, or the class derives neither from `Gate` nor `Attention`.
    """
    if name in GATES:
        raise ValueError(f"the gate name {name!r} is taken by {GATES[name].__name__}")

    def enter(gate: type[Attention]) -> type[Attention]:
        if not (isinstance(gate, type) and issubclass(gate, Attention)):
            raise ValueError(f"{gate!r} must be a class that derives from Gate or Attention")
        GATES[name] = gate
        return gate

    return enter
