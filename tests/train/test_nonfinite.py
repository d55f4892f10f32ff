"""Steps whose loss or gradient is not finite are named, left out, or end the run."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from runs import SMALL, Net, check_same, net, rows, without_times
from torch import nn

from spem.train import step
from spem.train.checkpoint import load_checkpoint
from spem.train.fitting import fit
from spem.train.identity import identity
from spem.train.nonfinite import MOST_IN_A_ROW, find_first
from spem.train.recipe import Recipe

SKIP = replace(SMALL, epochs=3, on_nonfinite="skip")


class Flaky(Net):
    """A network with a norm, which has values that are not finite in some of its training steps."""

    def __init__(self, bad, value=float("nan")):
        super().__init__(dropout=0.1)
        self.norm, self.bad, self.value, self.calls = nn.BatchNorm2d(1), bad, value, 0

    def forward(self, x):
        x = self.norm(x)
        if self.training and torch.is_grad_enabled():
            self.calls += 1
            if self.calls - 1 in self.bad:
                self.broken = True
                return super().forward(x * self.value)
            self.broken = False
        return super().forward(x * self.value if self.training and self.broken else x)


def flaky(bad, **options):
    torch.manual_seed(1)
    return Flaky(bad, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stop_names_step_rate_and_module_and_keeps_the_state_before(tmp_path, value):
    message = (
        r"^step 2 of epoch 2 is not finite, first the output of body\.0 \(Conv2d\), at the learning"
        r" rate 0\.\d+; the state before it is kept in .*run; a lower lr"
    )
    with pytest.raises(ValueError, match=message):
        fit(SMALL, flaky({4}, value=value), out=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1
    assert fit(SMALL, flaky(()), out=tmp_path / "run", resume=True).summary["final_test_top1"] > 0


def test_a_step_that_is_skipped_changes_nothing(tmp_path):
    """Weights, momentum, statistics and average are those of the steps before."""
    recipe = replace(SKIP, ema=0.9, epochs=1, schedule="constant", warmup_epochs=0)
    model = flaky({2})
    states = []
    plain = step.Step.__call__

    def call(self, *args):
        states.append([value.clone() for value in self.model.state_dict().values()])
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step.Step, "__call__", call)
        fit(recipe, model, out=tmp_path / "run")
    states.append(list(load_checkpoint(tmp_path / "run" / "checkpoint.pt")["model"].values()))
    assert all(torch.equal(a, b) for a, b in zip(states[2], states[3], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))
    assert rows(tmp_path / "run")[0]["skipped_steps"] == "1"


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2}, {"precision": "bf16-mixed"}, {"replicas": 2, "model": "resnet8"}],
)
def test_without_bad_steps_skip_trains_as_stop(tmp_path, changes):
    recipe = replace(SMALL, **changes, epochs=1)
    if recipe.replicas > 1:
        recipe = replace(recipe, batch_size=700)
    given = () if recipe.replicas > 1 else (net(),)
    one = fit(recipe, *given, out=tmp_path / "stop")
    given = () if recipe.replicas > 1 else (net(),)
    other = fit(replace(recipe, on_nonfinite="skip"), *given, out=tmp_path / "skip")
    weights, others = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_a_run_with_skipped_steps_resumes_bit_for_bit(tmp_path, capsys):
    whole = fit(replace(SKIP, progress=True), flaky({1, 4, 5}), out=tmp_path / "whole")
    assert [row["skipped_steps"] for row in rows(whole.folder)] == ["1", "2", "0"]
    assert "2 steps skipped as not finite" in capsys.readouterr().out
    model = flaky({1, 4, 5})

    def stop():
        if model.training and model.calls == 6:
            raise KeyboardInterrupt

    model.before = stop
    with pytest.raises(KeyboardInterrupt):
        fit(SKIP, model, out=tmp_path / "run")
    model.before = lambda: None
    model.calls = 6 - 3 * (load_checkpoint(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1)
    again = fit(SKIP, model, out=tmp_path / "run", resume=True)
    assert without_times(whole.folder) == without_times(again.folder)
    check_same(whole, again)


def test_too_many_in_a_row_stop_the_run(tmp_path):
    recipe = replace(SKIP, batch_size=60)
    with pytest.raises(
        ValueError, match=f"^{MOST_IN_A_ROW} steps in a row, the last of them step 14 of epoch 1"
    ):
        fit(recipe, flaky(range(4, 99)), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"^every step of epoch 2 is not finite, first the"):
        fit(SKIP, flaky(range(3, 99)), out=tmp_path / "short")
    assert load_checkpoint(tmp_path / "short" / "checkpoint.pt")["epoch"] == 1


def test_the_key_is_free_of_charge_and_refused_where_it_cannot_be():
    assert identity(Recipe(on_nonfinite="skip")) != identity(Recipe())
    with pytest.raises(ValueError, match="on_nonfinite must be stop with cuda_graph, got 'skip'"):
        Recipe(on_nonfinite="skip", cuda_graph=True)
    with pytest.raises(ValueError, match="unknown on_nonfinite 'ignore'; known: "):
        Recipe(on_nonfinite="ignore")  # pyright: ignore[reportArgumentType]


def test_what_is_not_finite_first_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    images = [torch.ones(3, 2)]
    assert find_first(model, images) == "the loss"
    model[2].weight.grad = torch.full((2, 2), float("inf"))
    assert find_first(model, images) == "the gradient of 2.weight"
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    assert find_first(model, images) == "the output of 0 (Linear)"
    assert find_first(model, [torch.full((1, 2), float("nan"))]) == "its images"


PROCESSES = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from runs import SMALL
from test_nonfinite import flaky
from spem.train.fitting import fit

if __name__ == "__main__":
    recipe = replace(SMALL, devices=2, epochs=2, on_nonfinite=sys.argv[2])
    model = flaky({1})
    model.before = int  # which can be pickled
    fit(recipe, model, out=Path(sys.argv[1]))
"""


@pytest.mark.hard
@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_processes_agree(tmp_path, policy):
    (tmp_path / "job.py").write_text(PROCESSES)
    path = os.pathsep.join([*sys.path, str(tmp_path)])
    done = subprocess.run(
        [sys.executable, tmp_path / "job.py", tmp_path / "run", policy],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    if policy == "skip":
        assert done.returncode == 0, done.stderr
        assert [row["skipped_steps"] for row in rows(tmp_path / "run")] == ["1", "0"]
    else:
        assert done.returncode == 1
        assert "step 2 of epoch 1 is not finite, first the output of body.0" in done.stderr
