"""Published accuracies on CIFAR that a comparison's own can stand beside, each with its source."""

from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

import torch

from spem.gates import GATES, gate_options
from spem.models import create_model
from spem.surgery.config import config_of

BEST = "best test epoch"
_README = "README of the authors' code"
_LOGS = "training logs of the authors' code"
_SPEM = f"SPEM, arXiv 2208.10322, {_README}"
_SEM = f"SEM, arXiv 2209.05680, {_README}"
_LSAS = f"LSAS, arXiv 2305.05200, {_README}"
_ASR = "ASR, arXiv 2304.06345"
_DIA = f"DIANet, arXiv 1905.10671, {_README}; 180 epochs for ResNet-164"
_IEBN = f"IEBN, arXiv 1908.04008, {_README}"
_BEARPAW = "bearpaw/pytorch-classification, README"
_OTHERS = "osmr/imgclsmob, of a third party, with another, stronger recipe"
_MOSKOMULE = "moskomule/senet.pytorch, README, of a third party; reduction 4 or 8"
_PORT = "EvgenyKashin/SRMnet, of a third party; its SRM differs from the authors'"
_ATTENTION = (
    "Residual Attention Network, arXiv 1704.06904, as the port"
    " tengshaofeng/ResidualAttentionNetwork-pytorch quotes the paper"
)
_ERROR = "error turned into accuracy; which epoch is not stated"
_UNSTATED = "which epoch is not stated"


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


def _accuracies(
    model: str,
    gate: str | None,
    values: tuple[str | None, str | None],
    kind: str,
    source: str,
    **options: Any,
) -> list[Published]:
    return [
        Published(model, gate, data, value, kind, source, options)
        for data, value in zip(("cifar10", "cifar100"), values, strict=True)
        if value is not None
    ]


def _errors(
    model: str, gate: str | None, values: tuple[str | None, str | None], source: str
) -> list[Published]:
    found = _accuracies(model, gate, values, _ERROR, source)
    return [each._replace(top1=str(100 - Decimal(each.top1))) for each in found]


PUBLISHED: tuple[Published, ...] = (
    *_accuracies("resnet164", None, ("93.39", "74.30"), BEST, _SPEM),
    *_accuracies("resnet164", "spem", ("94.80", "76.31"), BEST, _SPEM),
    *_accuracies("resnet164", None, ("93.39", "74.30"), BEST, _SEM),
    *_accuracies("resnet164", "sem", ("94.95", "76.76"), BEST, _SEM),
    *_accuracies("resnet164", "se", ("94.57", "75.30"), BEST, _LSAS),
    *_accuracies("resnet164", "lsas", ("95.01", "76.47"), BEST, _LSAS),
    *_accuracies("resnet164", None, (None, "74.10"), BEST, f"{_ASR}, {_README} and logs"),
    *_accuracies("resnet164", "se", (None, "75.03"), BEST, f"{_ASR}, {_README} and logs"),
    *_accuracies("resnet164", "asr", (None, "75.21"), BEST, f"{_ASR}, {_README} and logs"),
    *_accuracies(
        "resnet164", "asr", (None, "76.23"), BEST, f"{_ASR}, {_README} and logs", both=True
    ),
    *_accuracies("resnet164", None, (None, "73.54"), "final epoch", f"{_ASR}, {_LOGS}"),
    *_accuracies("resnet164", "se", (None, "74.69"), "final epoch", f"{_ASR}, {_LOGS}"),
    *_accuracies("resnet164", "asr", (None, "74.43"), "final epoch", f"{_ASR}, {_LOGS}"),
    *_accuracies("resnet164", "asr", (None, "75.71"), "final epoch", f"{_ASR}, {_LOGS}", both=True),
    *_accuracies("resnet164", None, (None, "74.29"), _UNSTATED, _IEBN),
    *_accuracies("resnet164", "iebn", (None, "77.09"), _UNSTATED, _IEBN),
    *_accuracies("resnet164", None, (None, "73.43"), "mean of 5 runs", _DIA),
    *_accuracies("resnet164", "dianet", (None, "76.67"), "mean of 5 runs", _DIA),
    *_accuracies("preresnet164", None, (None, "76.53"), "mean of 5 runs", _DIA),
    *_accuracies("preresnet164", "dianet", (None, "78.20"), "mean of 5 runs", _DIA),
    *_accuracies("resnet20", None, ("92", None), _UNSTATED, _MOSKOMULE),
    *_accuracies("resnet20", "se", ("93", None), _UNSTATED, _MOSKOMULE),
    *_accuracies("resnet32", None, ("92.1", None), _UNSTATED, _PORT),
    *_accuracies("resnet32", "se", ("92.5", None), _UNSTATED, _PORT),
    *_accuracies("resnet32", "srm", ("92.9", None), _UNSTATED, _PORT),
    *_errors("attention92", None, ("4.99", None), _ATTENTION),
    *_errors("vgg19", None, ("6.66", "28.05"), _BEARPAW),
    *_errors("resnet110", None, ("6.11", "28.86"), _BEARPAW),
    *_errors("preresnet110", None, ("4.94", "23.65"), _BEARPAW),
    *_errors("densenet100", None, ("4.54", "22.88"), _BEARPAW),
    *_errors("resnet20", None, ("5.97", "29.64"), _OTHERS),
    *_errors("resnet56", None, ("4.52", "24.88"), _OTHERS),
    *_errors("resnet110", None, ("3.69", "22.80"), _OTHERS),
    *_errors("resnet164", None, ("3.68", "20.44"), _OTHERS),
    *_errors("preresnet164", None, ("3.64", "20.18"), _OTHERS),
    *_errors("resnet164", "se", ("3.39", "19.95"), _OTHERS),
    *_errors("preresnet164", "se", ("3.73", "20.05"), _OTHERS),
    *_errors("resnet164", "dianet", ("3.50", "19.53"), _OTHERS),
    *_errors("preresnet164", "dianet", ("3.56", "19.99"), _OTHERS),
    *_errors("densenet100", None, ("4.16", "21.19"), _OTHERS),
)


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
