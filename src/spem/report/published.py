"""The published accuracies of `published.yaml`, and the networks of ours that they belong to."""

from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import torch

from spem._extras import needs_extra
from spem.gates import GATES, gate_options
from spem.models import create_model
from spem.surgery.config import config_of

with needs_extra("train"):
    import yaml


class Published(NamedTuple):
    """An accuracy that somebody published.

    Attributes:
        model: as `spem.create_model` calls the network.
        gate: a key of `GATES`, or None.
        data: "cifar10" or "cifar100".
        top1: test accuracy in percent, with the digits that were published.
        kind: what the number is: of which epoch, or a mean of how many runs.
        source: paper, arXiv number, and where it was read.
        options: options of the gate that are not its defaults.
    """

    model: str
    gate: str | None
    data: str
    top1: str
    kind: str
    source: str
    options: dict[str, Any] = {}  # noqa: RUF012


def _read_published() -> tuple[Published, ...]:
    """Read `published.yaml`: for each source and kind, accuracies or errors of several networks."""
    text = resources.files("spem.report").joinpath("published.yaml").read_text("utf-8")
    return tuple(
        Published(
            model=entry["model"],
            gate=entry["gate"],
            data=data,
            top1=entry[data] if "accuracies" in group else str(100 - Decimal(entry[data])),
            kind=group["kind"],
            source=group["source"],
            options=entry.get("options", {}),
        )
        for group in yaml.safe_load(text)
        for entry in group.get("accuracies", group.get("errors"))
        for data in ("cifar10", "cifar100")
        if data in entry
    )


PUBLISHED = _read_published()


def fits(entry: Published, recipe: dict[str, Any]) -> bool:
    """Return whether a run's recipe has the network of a published figure.

    Args:
        entry: what was published.
        recipe: of a record.
    """
    names = ("model", "gate", "data")
    if any(getattr(entry, name) != recipe[name] for name in names) or recipe["mask"] is not None:
        return False
    if recipe["block"] not in (None, _usual_block(entry.model)):
        return False
    if entry.gate is None or entry.gate not in GATES:
        return True
    defaults = gate_options(entry.gate)
    return recipe["placement"] is None and defaults | recipe["gate_options"] == defaults | (
        entry.options
    )


@cache
def _usual_block(model: str) -> str | None:
    """Return the block that a network of this name has, which is that of the published one."""
    with torch.device("meta"):
        config = config_of(create_model(model))
    return None if config is None else config.block
