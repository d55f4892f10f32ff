"""The attention methods by name."""

import inspect
from typing import Any

from spem.choices import unknown
from spem.gates.descriptor import DescriptorGate
from spem.gates.gate import Attention, Gate, auxiliary_loss
from spem.gates.spem import SPEM

__all__ = ["GATES", "SPEM", "Attention", "DescriptorGate", "Gate", "auxiliary_loss", "create_gate"]

GATES: dict[str, type[Attention]] = {"spem": SPEM}


def create_gate(name: str, channels: int, **options: Any) -> Attention:
    """Build a gate by its name.

    Args:
        name: a key of `GATES`.
        channels: C, the number of channels of the maps it gates.
        options: the keyword arguments of its class.

    Raises:
        ValueError: the name or an option is unknown, or a value is not allowed.

    Example:
        >>> create_gate("spem", 64, init="identity").gain
        tensor(4.)
    """
    if name not in GATES:
        raise unknown("gate", name, GATES)
    known = [
        parameter.name
        for parameter in inspect.signature(GATES[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            raise unknown(f"option of gate {name!r}", option, known)
    return GATES[name](channels, **options)
