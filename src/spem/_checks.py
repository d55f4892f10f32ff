"""Checks of arguments: the options of gates, tensors, modules, names."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.optim import Optimizer

from spem._files import check_path
from spem._messages import shorten, unknown
from spem._schema import is_whole

# No option counts further.
_MOST = 10**6


def is_number(value: object) -> bool:
    """Return whether a value is a real number; True and False are not."""
    return is_whole(value) or isinstance(value, float)


def check_whole(name: str, value: int, least: int = 1, most: int = _MOST) -> None:
    """Raise ValueError unless an option is a whole number from `least` to `most`."""
    if not is_whole(value) or not least <= value <= most:
        raise ValueError(
            f"{name} is {shorten(value)}, must be a whole number from {least} to {most:,}"
        )


def check_odd(name: str, value: int) -> None:
    """Raise ValueError unless an option is an odd whole number from 1 to 999."""
    if not is_whole(value) or not 1 <= value <= 999 or value % 2 == 0:
        raise ValueError(f"{name} is {shorten(value)}, must be an odd whole number from 1 to 999")


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless an option is a number from 0 to 1e30."""
    if not is_number(value) or not 0 <= value <= 1e30:
        raise ValueError(f"{name} is {shorten(value)}, must be a finite number of at least 0")


def check_switch(name: str, value: bool) -> None:
    """Raise ValueError unless a value is True or False; any text would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shorten(value)}, must be True or False")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless an option is a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {shorten(value)}, must be a number from 0 to 1")


def check_choice(kind: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError unless a value, of any type, is one of the known names of this kind."""
    if not isinstance(value, str) or value not in known:
        raise unknown(kind, value, known)


def check_tensor(name: str, value: Tensor) -> None:
    """Raise ValueError unless an argument is a tensor, or what stands for one in a trace."""
    if not hasattr(value, "dim"):
        raise ValueError(f"{name} is {shorten(value)}, must be a tensor")


def sizes_are_known(x: Tensor) -> bool:
    """Return whether the sizes of x are numbers that can be checked.

    In traces of `torch.jit` and `torch.fx` they are steps of the trace: a comparison would warn or
    end it.
    """
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not (tracing or isinstance(x, Proxy))


def check_module(model: nn.Module) -> None:
    """Raise ValueError unless a model is a module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {shorten(model)}, must be a torch.nn.Module")


def check_device(name: str, device: object) -> None:
    """Raise ValueError unless a device is one that PyTorch knows."""
    try:
        torch.device(device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name} is {shorten(device)}, must be a device like 'cpu' or 'cuda:0'"
        ) from error


def check_optimizer(optimizer: Optimizer | None) -> None:
    """Raise ValueError unless an optimizer, if there is one, is PyTorch's."""
    if not isinstance(optimizer, Optimizer | None):
        raise ValueError(
            f"optimizer is {shorten(optimizer)}, must be a torch.optim.Optimizer or None"
        )


def check_names(name: str, values: Iterable[str]) -> list[str]:
    """Return names as a list, a single one, too; raise ValueError unless all are texts."""
    if isinstance(values, str):
        return [values]
    found: list[str] = []
    for each in values if _lists(values) else [None]:
        if not isinstance(each, str):  # at once: a range may have 10^9 numbers
            raise ValueError(f"{name} is {shorten(values)}, must be names")
        found.append(each)
    return found


def _lists(values: object) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, Tensor)


def check_paths(name: str, values: Iterable[str | Path]) -> list[Path]:
    """Return paths as a list; raise ValueError unless all of them are paths."""
    if not _lists(values) or isinstance(values, str):
        raise ValueError(f"{name} is {shorten(values)}, must be a list of paths")
    return [check_path(name, each) for each in values]


def check_new_name(kind: str, name: str) -> None:
    """Raise ValueError unless a name can stand in commands, recipes and names of folders.

    Args:
        kind: what is named ("gate").
        name: the new name.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name) or name == "none":
        raise ValueError(
            f"the {kind} name {shorten(name)} must be made of letters, digits, '_', '-', '.' and"
            " '+', begin with one of the first three, and not be 'none'"
        )


def check_normalises(method: str, module: nn.Module, x: Tensor) -> None:
    """Raise ValueError where a batch norm would train on a single value a channel.

    Args:
        method: name of the gate for the message.
        module: the module that contains the norm; a norm in evaluation mode always can.
        x: (N, C, H, W), of as many images and positions as the norm's input.
    """
    if not sizes_are_known(x) or x.shape[0] * x.shape[2] * x.shape[3] != 1:
        return
    if any(norm.training for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)):
        raise ValueError(
            f"{method} normalises over images and positions, and one image of one position is a "
            "single value: train with more images or larger feature maps"
        )
