"""Optimiser, learning-rate schedule and moving average of a recipe."""

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spem.gates.groups import parameter_groups
from spem.train.recipe import Recipe


def create_optimizer(model: nn.Module, recipe: Recipe) -> SGD:
    """Return SGD over all parameters of a network.

    Weight decay acts on every parameter, except those that the authors of a gate exempt
    (`Attention.no_weight_decay`: SRM, and the shift of GCT).
    """
    return SGD(
        parameter_groups(model),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        # In a CUDA graph, only the fused form reads the rate from the device; else PyTorch chooses.
        fused=recipe.cuda_graph or None,
    )


def create_schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """Return the learning-rate schedule: a linear warm-up, then the recipe's schedule.

    Args:
        optimizer: the optimiser whose rates it sets.
        recipe: epochs, schedule, milestones, gamma and warmup_epochs.
        steps: steps of an epoch; the schedule is to be advanced after each.
    """
    warmup = round(recipe.warmup_epochs * steps)
    rest = max(1, recipe.epochs * steps - warmup)
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


def create_average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """Return the exponential moving average of weights and buffers; None if `ema` is None."""
    if recipe.ema is None:
        return None
    average = get_ema_multi_avg_fn(recipe.ema)
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
