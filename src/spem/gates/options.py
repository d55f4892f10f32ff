"""Read the options of a class of gates from its signature, and check them before it is built."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from spem._messages import unknown
from spem.gates.attention import Attention

G = TypeVar("G", bound=Attention)


def options_of(gate: type[Attention]) -> dict[str, Any]:
    """Return the options of a class of gates and their defaults, those of its bases included.

    The default of an option that must be given is `inspect.Parameter.empty`.
    """
    options: dict[str, Any] = {}
    for level in gate.__mro__:
        if "__init__" not in vars(level):
            continue
        parameters = inspect.signature(level).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        options = own | options
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return options


def build_gate(name: str, gate: type[G], channels: int, options: Mapping[str, Any]) -> G:
    """Build a gate of a class.

    Args:
        name: name of the gate for messages.
        gate: its class.
        channels: C.
        options: keyword arguments of the class.

    Raises:
        ValueError: an option is unknown or missing, or a value is not allowed.
    """
    known = options_of(gate)
    options = _drop_retired(name, gate, options)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of gate {name!r}", option, known)
        # Any string would count as true, "no" too. The class checks its other options itself.
        if isinstance(known[option], bool) and not isinstance(value, bool):
            raise ValueError(f"{option} is {value!r}, must be True or False")
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"gate {name!r} needs the option {option!r}, which has no default")
    return gate(channels, **options)


def _drop_retired(
    name: str, gate: type[Attention], options: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the options that the class still has; a retired one that was switched on is named."""
    for option in gate.retired_options:
        if options.get(option):
            warnings.warn(
                f"the option {option!r} of gate {name!r} is gone and {option}={options[option]!r} "
                "has no effect any more",
                stacklevel=4,
            )
    return {key: value for key, value in options.items() if key not in gate.retired_options}
