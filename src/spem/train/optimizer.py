"""Optimiser, learning-rate schedule and moving average of a recipe."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spem.gates.groups import parameter_groups
from spem.train.muon import MuonAdamW, matrices
from spem.train.parts import classifier_parameters, gate_parameters, layer_parameters
from spem.train.recipe import Recipe


def create_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the optimiser of a recipe over all parameters of a network.

    Weight decay acts on every parameter, except those that the authors of a gate exempt
    (`Attention.no_weight_decay`: SRM, and the shift of GCT).

    Raises:
        ValueError: the recipe tells parts of the network apart, and there is no classifier.
    """
    groups = _split_rates(parameter_groups(model), model, recipe)
    decay: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    momentum: dict[str, Any] = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.optimizer == "adamw":
        return AdamW(groups, betas=(recipe.momentum, 0.999), **decay)
    if recipe.optimizer == "muon":
        taken = matrices(model) - gate_parameters(model) - classifier_parameters(model)
        groups = _split(groups, "muon", lambda p: p in taken)
        return MuonAdamW(groups, **decay, **momentum)
    # In a CUDA graph, only the fused form reads the rate from the device; else PyTorch chooses.
    return SGD(groups, **decay, **momentum, fused=recipe.cuda_graph or None)


def _split_rates(
    groups: list[dict[str, Any]], model: nn.Module, recipe: Recipe
) -> list[dict[str, Any]]:
    """Return groups of parameters with their own learning rates, where a recipe has factors."""
    if not recipe.lr_factors and recipe.layer_decay is None:
        return groups
    gates, classifier = gate_parameters(model), classifier_parameters(model)
    layers, decay = layer_parameters(model), recipe.layer_decay or 1.0
    depths = {p: len(layers) - 1 - number for number, layer in enumerate(layers) for p in layer}

    def rate(parameter: Parameter) -> float:
        inside = parameter in classifier, parameter in gates
        part = "classifier" if inside[0] else "gates" if inside[1] else "backbone"
        return recipe.lr * recipe.lr_factors.get(part, 1.0) * decay ** depths[parameter]

    return _split(groups, "lr", rate)


def _split(
    groups: list[dict[str, Any]], key: str, value: Callable[[Parameter], Any]
) -> list[dict[str, Any]]:
    """Return groups of which each has one value of a setting that parameters decide."""
    parts: list[dict[str, Any]] = []
    for group in groups:
        of_value: dict[Any, list[Parameter]] = {}
        for parameter in group["params"]:
            of_value.setdefault(value(parameter), []).append(parameter)
        parts += [group | {"params": some, key: each} for each, some in of_value.items()]
    return parts


def create_schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """Return the learning-rate schedule: a warm-up, then the recipe's schedule.

    Args:
        optimizer: the optimiser whose rates it sets.
        recipe: epochs, schedule, milestones, gamma and warmup_epochs.
        steps: steps of an epoch; the schedule is to be advanced after each.
    """
    warmup = round(recipe.warmup_epochs * steps)
    rest = max(1, recipe.epochs * steps - warmup)
    if recipe.schedule == "onecycle":
        return _create_cycle(optimizer, warmup, recipe.epochs * steps)
    if recipe.schedule == "step":
        milestones = [epoch * steps - warmup for epoch in recipe.milestones]
        schedule = MultiStepLR(optimizer, milestones, recipe.gamma)
    elif recipe.schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, rest)
    else:
        schedule = ConstantLR(optimizer, factor=1.0)
    if warmup == 0:
        return schedule
    climb = LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    return SequentialLR(optimizer, [climb, schedule], [warmup])


def _create_cycle(optimizer: Optimizer, warmup: int, steps: int) -> OneCycleLR:
    """Return PyTorch's one cycle; the momentum stays the recipe's.

    The highest rate comes at step `warmup`, as with the other schedules, and the lowest would come
    after the last step. Without a warm-up, the first step has nearly the highest.
    """
    peak = min(warmup, steps) + 1 if warmup else 0  # PyTorch divides by the length of a phase
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps + 1,
        pct_start=peak / (steps + 1),
        cycle_momentum=False,
    )


def create_average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """Return the exponential moving average of weights and buffers; None if `ema` is None."""
    if recipe.ema is None:
        return None
    average = get_ema_multi_avg_fn(recipe.ema)
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
