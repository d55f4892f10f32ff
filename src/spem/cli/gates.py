"""`spem gates`: the gates that can be built by name."""

from typing import Any


def list_gates(*, channels: int = 64, sort: str | None = None, long: bool = False) -> None:
    """List the known gates, how each is carried out, and the parameters that it adds.

    The families: pooled, multipliers of the channels from their pooled values, in the passes of
    the norm before it; quadratic, a function of each value with coefficients from the pooled
    values; strips, from the means of rows and columns; map, in passes of its own.

    Args:
        channels: number of channels of the feature map.
        sort: by name, family or parameters; if not given, in the order of the library.
        long: show also the name of the method, and why a gate has no number of parameters.
    """
    from spem._checks import check_choice
    from spem.compare.tables import show
    from spem.gates import GATES

    if channels < 1:
        raise ValueError(f"channels is {channels}, must be at least 1")
    columns = ("name", "family", "parameters")
    if sort is not None:
        check_choice("sort", sort, columns)
    rows: list[tuple[Any, ...]] = [_describe_gate(name, channels) for name in GATES]
    if sort is not None:
        column = columns.index(sort)
        rows.sort(key=lambda row: (row[column] is None, row[column]))
    header = ["gate", "family", f"parameters at {channels} channels", "method"]
    shown = len(header) if long else len(header) - 1
    show(header[:shown], (row[:shown] for row in rows))


def _describe_gate(name: str, channels: int) -> tuple[str, str, int | None, str]:
    from spem.gates import GATES, create_gate

    method = (GATES[name].__doc__ or "").partition("\n")[0]
    try:
        gate = create_gate(name, channels)
    except ValueError as error:  # an option without a default, or a width that it cannot have
        return name, GATES[name].family, None, f"{method} ({error})"
    return name, gate.family, sum(parameter.numel() for parameter in gate.parameters()), method
