"""The registry of gates: every class by its name, its options, and gates built from them."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from spem._checks import check_choice, check_new_name, check_switch
from spem._messages import shorten, unknown
from spem.gates.attention import Attention, Place

# `spem.gates` enters the library's own.
GATES: dict[str, type[Attention]] = {}


def create_gate(name: str, channels: int, /, **options: Any) -> Attention:
    """Build a gate by its name.

    Args:
        name: a key of `GATES`.
        channels: C, the number of channels of the feature maps it gates.
        options: the keyword arguments of its class.

    Raises:
        ValueError: the name or an option is unknown, an option is missing, or a value is not
            allowed.

    Example:
        >>> create_gate("spem", 64, init="identity").gain
        tensor(4.)
    """
    check_choice("gate", name, GATES)
    gate, known = GATES[name], gate_options(name)
    for option in options.keys() & gate.retired_options:
        if value := options.pop(option):
            warnings.warn(
                f"the option {shorten(option)} of gate {shorten(name)} is gone and "
                f"{option}={shorten(value)} has no effect any more",
                stacklevel=2,
            )
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of gate {shorten(name)}", option, known)
        if isinstance(known[option], bool):  # the class checks its other options itself
            check_switch(option, value)
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise ValueError(
                f"gate {shorten(name)} needs the option {shorten(option)}, which has no default"
            )
    with _default_of_float32():
        return gate(channels, **options)


@contextmanager
def _default_of_float32() -> Iterator[None]:
    """Make new parameters float32 where the default is narrower: those of gates are, always."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(default, torch.float32))
    try:
        yield
    finally:
        torch.set_default_dtype(default)


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
            f"gate {shorten(name)} with {dict(options)} reads the block's input, which only "
            "the end of a residual branch of a network of create_model gives it"
        )
    return gate


def gate_options(name: str) -> dict[str, Any]:
    """Return the options of a gate and their defaults, with those of its base classes.

    The default of an option that must be given is `inspect.Parameter.empty`.

    Raises:
        ValueError: no gate has this name.
    """
    check_choice("gate", name, GATES)
    options: dict[str, Any] = {}
    for level in GATES[name].__mro__:
        if "__init__" not in vars(level):
            continue
        parameters = inspect.signature(level).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | options
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return options


def register(name: str) -> Callable[[type[Attention]], type[Attention]]:
    """Return a decorator that enters a class of gates into `GATES` under a name.

    Args:
        name: the new key of `GATES`, of letters, digits, "_", "-", "." and "+".

    Raises:
        ValueError: the name is taken or not allowed, or the class derives neither from `Gate` nor
            `Attention`.
    """
    check_new_name("gate", name)
    if name in GATES:
        raise ValueError(f"the gate name {shorten(name)} is taken by {GATES[name].__name__}")

    def enter(gate: type[Attention]) -> type[Attention]:
        if not (isinstance(gate, type) and issubclass(gate, Attention)):
            raise ValueError(
                f"gate is {shorten(gate)}, must be a class that derives from Gate or Attention"
            )
        GATES[name] = gate
        return gate

    return enter
