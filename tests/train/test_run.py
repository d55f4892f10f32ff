"""A run is exact: it follows the recipe, and nothing but the recipe decides it."""

import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from runs import SMALL, check_same, net, rows, without_times
from torch import nn

from spem import SPEM, GatedBatchNorm2d, auxiliary_loss, create_model
from spem.data.batches import Batches, Split
from spem.data.dataset import load_dataset
from spem.train.checkpoint import load_checkpoint
from spem.train.fitting import Interrupted, fit
from spem.train.metrics import evaluate
from spem.train.order import hash_seed
from spem.train.recipe_files import load_recipe

VARIANTS = {
    "plain": SMALL,
    "averaged": replace(SMALL, ema=0.9, accumulate=3, clip_gradient=0.5),
    "steps": replace(SMALL, schedule="step", milestones=[1], precision="bf16-mixed"),
}


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_the_papers_batches():
    split = Split(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000).long())
    sizes = [len(y) for _, y in Batches(split, load_recipe("paper").batch_size).in_order()]
    assert sizes == [128] * 390 + [80]


def test_one_step_descends_on_cross_entropy_auxiliary_loss_and_decay_of_every_parameter():
    recipe = replace(SMALL, epochs=1, batch_size=2000, crop=0, weight_decay=0.1, warmup_epochs=0)
    recipe = replace(recipe, momentum=0.0, nesterov=False, schedule="constant")
    model = create_model("resnet8", "spem", in_channels=1, alpha=0.2)
    twin = create_model("resnet8", "spem", in_channels=1, alpha=0.2)
    twin.load_state_dict(model.state_dict())
    run = fit(recipe, model)

    train = load_dataset("digits").train
    order = torch.randperm(1293, generator=torch.Generator().manual_seed(hash_seed(0, 0)))
    images, labels = next(Batches(train, 2000, channels_last=True).shuffled(order))
    twin = twin.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    (F.cross_entropy(twin.train()(images), labels) + auxiliary_loss(twin)).backward()
    stepped = dict(run.model.named_parameters())
    for name, before in twin.named_parameters():
        assert before.grad is not None
        expected = before - recipe.lr * (before.grad + 0.1 * before)
        torch.testing.assert_close(stepped[name], expected, msg=name)
    assert float(rows(run.folder)[0]["auxiliary_loss"]) == pytest.approx(3 * 0.2 * 0.5)


def test_the_seed_decides_a_run_and_the_callers_generator_does_not():
    recipe = replace(SMALL, model="resnet8", gate="spem", epochs=1)
    one = fit(recipe)
    torch.manual_seed(3)
    check_same(one, fit(recipe))
    assert without_times(fit(replace(recipe, seed=1)).folder) != without_times(one.folder)


def test_every_step_has_a_seed_of_its_own():
    places = [(epoch, step, rank) for epoch in range(9) for step in range(9) for rank in range(2)]
    seeds = {hash_seed(seed, *place) for seed in (0, 1) for place in [(), (0,), (1,), *places]}
    assert len(seeds) == 2 * (3 + len(places))


def acting_at(call, action):
    """A network that does something before the given forward pass.

    Pass 0 counts the multiply-adds; an epoch has 3 steps, 1 test and 1 validation pass.
    """
    calls = iter(range(10_000))
    model = net()
    model.before = lambda: action() if next(calls) == call else None
    return model


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def press_ctrl_c_twice():
    press_ctrl_c()
    press_ctrl_c()


@pytest.fixture
def _ctrl_c_raises():
    """As in a terminal: a shell's background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_raises")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("call", [2, 7])
def test_a_run_stopped_by_ctrl_c_and_resumed_equals_one_that_was_not(variant, call, tmp_path):
    recipe, folder = VARIANTS[variant], tmp_path / "stopped"
    with pytest.raises(Interrupted) as stop:
        fit(recipe, acting_at(call, press_ctrl_c), out=folder)
    assert stop.value.folder == folder
    assert not (folder / "summary.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    check_same(fit(recipe, net()), fit(recipe, net(), out=folder, resume=True))


def test_ctrl_c_is_heeded_after_the_step_within_the_epoch(tmp_path):
    with pytest.raises(Interrupted):
        fit(SMALL, acting_at(7, press_ctrl_c), out=tmp_path / "stopped")
    state = load_checkpoint(tmp_path / "stopped" / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == (1, 2)


def test_a_second_ctrl_c_stops_at_once_and_the_last_epoch_stays(tmp_path):
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fit(SMALL, acting_at(7, press_ctrl_c_twice), out=folder)
    state = load_checkpoint(folder / "checkpoint.pt")
    assert (state["epoch"], state["step"]) == (1, 0)
    assert len(rows(folder)) == 1
    check_same(fit(SMALL, net()), fit(SMALL, net(), out=folder, resume=True))


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path):
    def die():
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):
        fit(SMALL, acting_at(2, die), out=tmp_path / "died")
    check_same(fit(SMALL, net()), fit(SMALL, net(), out=tmp_path / "died", resume=True))


def test_a_run_that_died_before_its_first_checkpoint_starts_from_its_weights_again(tmp_path):
    recipe = replace(SMALL, weights=str(fit(SMALL, net()).folder))

    def die():
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):
        fit(recipe, acting_at(2, die), out=tmp_path / "died")
    check_same(fit(recipe, net()), fit(recipe, net(), out=tmp_path / "died", resume=True))


def test_a_checkpoint_without_a_run_is_named(tmp_path):
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fit(SMALL, acting_at(7, press_ctrl_c), out=folder)
    for content in ({"epoch": 1}, [1]):
        torch.save(content, folder / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"stopped/checkpoint\.pt is no checkpoint of a run"):
            fit(SMALL, net(), out=folder, resume=True)


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    recipe = replace(SMALL, crop=0)  # 5 micro-batches cannot share the last 293 images equally
    one = fit(recipe, net(dropout=0.0)).model.state_dict()
    parts = fit(replace(recipe, accumulate=5), net(dropout=0.0)).model.state_dict()
    torch.testing.assert_close(one, parts)


def test_averaged_weights_are_those_evaluated_and_stored():
    run = fit(replace(SMALL, ema=0.5), net())
    stored, state = run.model.state_dict(), load_checkpoint(run.folder / "checkpoint.pt")
    for name, value in stored.items():
        assert torch.equal(value, state["average"][f"module.{name}"])
        assert not torch.equal(value, state["model"][name])
    measured = evaluate(run.model, Batches(load_dataset("digits").test, 1000))
    assert float(rows(run.folder)[-1]["test_loss"]) == pytest.approx(measured["loss"])


def test_the_loss_is_smoothed():
    recipe = replace(SMALL, epochs=1, batch_size=2000, crop=0, label_smoothing=0.4)
    run = fit(recipe, net(dropout=0.0))
    images, labels = next(Batches(load_dataset("digits").train, 2000).in_order())
    expected = F.cross_entropy(net(dropout=0.0)(images), labels, label_smoothing=0.4)
    assert float(rows(run.folder)[0]["train_loss"]) == pytest.approx(expected.item())


def test_the_gradient_is_clipped():
    recipe = replace(SMALL, epochs=1, batch_size=2000, weight_decay=0.0, clip_gradient=1e-3)
    model, before = net(), net()
    fit(replace(recipe, nesterov=False, warmup_epochs=0), model)
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    moved = torch.cat([(after - start).flatten() for after, start in pairs]).norm()
    assert moved.item() == pytest.approx(recipe.lr * 1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(tmp_path):
    recipe = replace(SMALL, epochs=4, schedule="step", milestones=[2], gamma=1e30)
    with pytest.raises(
        ValueError,
        match=r"step . of epoch 3 is not finite, first .*; the state before it is kept in",
    ):
        fit(recipe, net(), out=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["epoch"] == 2
    assert len(rows(tmp_path / "run")) == 2


def test_a_loss_that_is_not_finite_in_the_first_epoch_promises_no_state(tmp_path):
    message = r"step . of epoch 1 is not finite, first .* rate 9.*e\+29; a lower lr"
    with pytest.raises(ValueError, match=message):
        fit(replace(SMALL, lr=1e30, warmup_epochs=0), net(), out=tmp_path / "run")


def test_the_process_is_left_as_it_was():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    fit(replace(SMALL, threads=2, model="resnet8", epochs=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


class Smooth(nn.Module):
    """A network with a gated norm and no kink at which a rounding could become a difference."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(1, 8, 3, 2)
        self.norm = GatedBatchNorm2d(8, gate=SPEM(8, init="identity", pool="avg"))
        self.head = nn.Linear(8 * 9, 10)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).tanh().flatten(1))


@pytest.mark.hard  # in `make test` with the union batch, see test_union_batch.py
def test_two_processes_train_like_one(tmp_path):
    recipe = replace(SMALL, epochs=1, crop=0, sync_batchnorm=True)
    one = fit(recipe, Smooth(), out=tmp_path / "one")
    two = fit(replace(recipe, devices=2, threads=2), Smooth(), out=tmp_path / "two")
    torch.testing.assert_close(two.model.state_dict(), one.model.state_dict())
    numbers = [[float(v) for v in without_times(run.folder)[0].values()] for run in (one, two)]
    assert numbers[1] == pytest.approx(numbers[0])
