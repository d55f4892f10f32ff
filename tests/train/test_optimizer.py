import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from spem.train.optimizer import create_average, create_optimizer, create_schedule
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe


def learning_rates(recipe, steps):
    """The rate of every step, and the one after the last."""
    optimizer = create_optimizer(nn.Linear(1, 1), recipe)
    schedule = create_schedule(optimizer, recipe, steps)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(recipe.epochs * steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_papers_rates():
    steps = 7
    expected = [0.1] * 81 * steps + [0.01] * (122 - 81) * steps + [0.001] * (164 - 122) * steps
    assert learning_rates(load_recipe("paper"), steps)[:-1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "at_the_end"),
    [("cosine", 0.0), ("onecycle", 0.2 / 25e4), ("constant", 0.2), ("step", 0.1)],
)
def test_warm_up_climbs_to_the_rate_and_the_schedule_follows(schedule, at_the_end):
    recipe = Recipe(epochs=4, warmup_epochs=1.5, lr=0.2, schedule=schedule)
    rates = learning_rates(replace(recipe, milestones=[3], gamma=0.5), 10)
    assert rates[0] == pytest.approx(0.2 / 25 if schedule == "onecycle" else 0.2 / 15)
    assert all(a < b for a, b in pairwise(rates[:16]))
    assert rates[15] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[15:]))
    cosine = 0.1 + 0.1 * math.cos(math.pi * 14 / 25)
    assert rates[29] == pytest.approx(
        cosine if schedule in ("cosine", "onecycle") else 0.2, rel=1e-5
    )
    assert rates[40] == pytest.approx(at_the_end, abs=1e-12)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_may_be_all_warm_up(epochs):
    rates = learning_rates(Recipe(epochs=epochs, warmup_epochs=2), 5)
    assert rates[:-1] == pytest.approx([0.1 / 10 + 0.09 * step / 10 for step in range(5 * epochs)])


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_cycle_may_be_all_warm_up(epochs):
    rates = learning_rates(Recipe(epochs=epochs, warmup_epochs=9, schedule="onecycle"), 5)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert all(a < b for a, b in pairwise(rates))
    assert rates[-1] == pytest.approx(0.1)


def test_one_cycle_without_warm_up_starts_at_the_rate():
    rates = learning_rates(Recipe(epochs=2, warmup_epochs=0, schedule="onecycle"), 5)
    assert rates[0] == pytest.approx(0.1, rel=0.05)
    assert all(a > b for a, b in pairwise(rates))


def test_the_average_follows_weights_and_buffers():
    model = nn.BatchNorm1d(1)
    average = create_average(model, Recipe(ema=0.75))
    assert average is not None
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        model.running_mean = torch.full((1,), value)
        average.update_parameters(model)
    expected = torch.full((1,), (1.0 * 0.75 + 2.0 * 0.25) * 0.75 + 4.0 * 0.25)
    averaged = average.module.state_dict()
    assert torch.equal(averaged["weight"], expected)
    assert torch.equal(averaged["running_mean"], expected)
    assert create_average(model, Recipe()) is None
