import csv
import json
import os
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spem import auxiliary_loss, create_model, train
from spem.batches import Batches, Split
from spem.checkpoint import load_checkpoint, load_run
from spem.data import Dataset
from spem.devices import create_fabric
from spem.loop import Run, hash_seed
from spem.optimizer import create_optimizer, create_schedule
from spem.recipes import Recipe, load_recipe
from spem.train import Interrupted, evaluate, fit

SMALL = Recipe(
    epochs=2,
    batch_size=100,
    lr=0.05,
    crop=1,
    warmup_epochs=0.5,
    threads=1,
    device="cpu",
    progress=False,
)


class Net(nn.Module):
    """A classifier without norms, with dropout, and with a call before each forward pass."""

    def __init__(self, classes=10, dropout=0.1):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(8 * 9, classes)
        self.before = lambda: None

    def forward(self, x):
        self.before()
        return self.head(self.body(x).flatten(1))


@pytest.fixture(autouse=True)
def dataset(monkeypatch, tmp_path):
    """300 training, 50 validation and 60 test images of 10 classes that can be told apart."""
    labels = torch.arange(410) % 10
    patterns = torch.randint(0, 256, (10, 1, 8, 8))
    images = (patterns[labels] * 0.7 + torch.randint(0, 77, (410, 1, 8, 8))).to(torch.uint8)
    parts = [
        Split(*part)
        for part in zip(*(t.split([300, 50, 60]) for t in (images, labels)), strict=True)
    ]
    whole = Dataset("patterns", *parts, classes=tuple("abcdefghij"))
    monkeypatch.setattr(
        train,
        "load_dataset",
        lambda *_, validation, **__: whole if validation else whole._replace(validation=None),
    )
    monkeypatch.chdir(tmp_path)
    return whole


def net(**options):
    torch.manual_seed(1)
    return Net(**options)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_times(folder):
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in rows(folder)]


def same_run(one, other):
    weights, others = one.model.state_dict(), other.model.state_dict()
    assert without_times(one.folder) == without_times(other.folder)
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


# The recipe


def test_the_papers_learning_rates():
    steps = 391
    optimizer = create_optimizer(nn.Linear(1, 1), load_recipe("paper"))
    schedule = create_schedule(optimizer, load_recipe("paper"), steps)
    rates = []
    for _ in range(164 * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1] * 81 * steps + [0.01] * 41 * steps + [0.001] * 42 * steps)


def test_the_papers_batches():
    split = Split(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000).long())
    batches = Batches(split, load_recipe("paper").batch_size)
    assert len(batches) == 391
    assert [len(labels) for _, labels in batches.shuffled(torch.arange(50_000))][-2:] == [128, 80]


def test_warm_up_climbs_to_the_rate_and_cosine_falls_to_zero():
    recipe = replace(SMALL, epochs=4, warmup_epochs=1)
    optimizer = create_optimizer(nn.Linear(1, 1), recipe)
    schedule = create_schedule(optimizer, recipe, 10)
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(recipe.lr / 10)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert rates[10] == pytest.approx(recipe.lr)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[40] == pytest.approx(0, abs=1e-12)


def test_decay_acts_on_all_parameters_and_the_auxiliary_loss_is_in_the_total():
    model = create_model("resnet8", "spem", in_channels=1, alpha=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = replace(SMALL, epochs=1, batch_size=300, lr=0.01, weight_decay=0.1, nesterov=False)
    recipe = replace(recipe, momentum=0.0, schedule="constant", warmup_epochs=0)
    images, labels = [], []

    def record(module, inputs):
        if module.training:
            images.append(inputs[0])

    model.register_forward_pre_hook(record)
    twin = create_model("resnet8", "spem", in_channels=1, alpha=0.1)
    twin.load_state_dict(model.state_dict())
    run = fit(recipe, model)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(hash_seed(0, 0)))
    labels = train.load_dataset(validation=0.1).train.labels[order]
    twin.to(memory_format=torch.channels_last)
    (F.cross_entropy(twin.train()(images[0]), labels) + auxiliary_loss(twin)).backward()
    after = dict(run.model.named_parameters())
    for name, p in twin.named_parameters():
        step = recipe.lr * (p.grad + recipe.weight_decay * before[name])
        torch.testing.assert_close(after[name], before[name] - step)
    assert float(rows(run.folder)[0]["auxiliary_loss"]) == pytest.approx(3 * 0.1 * 0.5)


# Exactness


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, two = (fit(SMALL, net()) for _ in range(2))
    same_run(one, two)
    assert without_times(fit(replace(SMALL, seed=1), net()).folder) != without_times(one.folder)


def test_the_initial_weights_follow_from_the_seed_alone():
    recipe = replace(SMALL, model="resnet8", gate="spem", epochs=1)
    one = fit(recipe)
    torch.manual_seed(3)
    same_run(one, fit(recipe))


VARIANTS = {
    "plain": SMALL,
    "averaged": replace(SMALL, ema=0.9, accumulate=3, clip_gradient=0.5),
    "steps": replace(SMALL, schedule="step", milestones=[1], precision="bf16-mixed"),
}


def interrupt_at(model, call, signals=1):
    """Let Ctrl-C arrive at a forward pass: 3 steps, 1 validation and 1 test pass an epoch."""
    calls = iter(range(10_000))

    def before():
        if next(calls) == call:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)

    model.before = before
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("call", [2, 7])
def test_a_run_stopped_by_ctrl_c_and_resumed_equals_one_that_was_not(variant, call, tmp_path):
    recipe = VARIANTS[variant]
    whole = fit(recipe, net())
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted) as stop:
        fit(recipe, interrupt_at(net(), call), out=folder)
    assert stop.value.folder == folder
    assert not (folder / "summary.json").exists()
    same_run(whole, fit(recipe, net(), out=folder, resume=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once_and_the_last_epoch_stays(tmp_path):
    whole, folder = fit(SMALL, net()), tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fit(SMALL, interrupt_at(net(), 8, signals=2), out=folder)
    assert load_checkpoint(folder / "checkpoint.pt")["epoch"] == 1
    assert len(rows(folder)) == 1
    same_run(whole, fit(SMALL, net(), out=folder, resume=True))


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path):
    def die():
        raise RuntimeError("power cut")

    whole, folder, model = fit(SMALL, net()), tmp_path / "died", net()
    model.body.register_forward_hook(lambda module, *_: die() if module.training else None)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(SMALL, model, out=folder)
    same_run(whole, fit(SMALL, net(), out=folder, resume=True))


def test_a_finished_run_is_returned_as_it_is(tmp_path, capsys):
    run = fit(SMALL, net(), out=tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    again = fit(SMALL, Net(), out=tmp_path / "run", resume=True)
    assert again.summary == run.summary
    same_run(run, again)
    assert "finished" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    # 300 images: the last batch has 44, which 5 micro-batches cannot share equally.
    recipe = replace(SMALL, batch_size=64, crop=0)
    one = fit(recipe, net(dropout=0.0)).model.state_dict()
    parts = fit(replace(recipe, accumulate=5), net(dropout=0.0)).model.state_dict()
    torch.testing.assert_close(one, parts)


def test_averaged_weights_are_those_evaluated_and_stored():
    recipe = replace(SMALL, ema=0.5, epochs=1)
    fabric = create_fabric(recipe)
    data = train.load_dataset(validation=None)
    (folder := fit(recipe, net()).folder)
    run = Run(fabric, recipe, net(), data, folder / "nowhere")
    expected = None
    for _ in run._train_epoch():
        weights = run.model.head.weight.detach()
        expected = weights.clone() if expected is None else expected.lerp(weights, 0.5)
    state = load_checkpoint(folder / "checkpoint.pt")
    stored = fit(recipe, net()).model
    torch.testing.assert_close(state["average"]["module.head.weight"], expected)
    assert torch.equal(stored.head.weight, state["average"]["module.head.weight"])
    assert not torch.equal(stored.head.weight, state["model"]["head.weight"])
    measured = evaluate(stored, Batches(data.test, 1000))["loss"]
    assert float(rows(folder)[0]["test_loss"]) == measured


def test_label_smoothing_and_clipping_act():
    one = fit(SMALL, net())
    smooth = fit(replace(SMALL, label_smoothing=0.5), net())
    assert smooth.model.head.weight.abs().sum() < one.model.head.weight.abs().sum()
    recipe = replace(SMALL, epochs=1, batch_size=300, clip_gradient=1e-3, weight_decay=0.0)
    recipe = replace(recipe, warmup_epochs=0, nesterov=False)
    before = torch.cat([p.detach().flatten() for p in net().parameters()])
    after = torch.cat([p.detach().flatten() for p in fit(recipe, net()).model.parameters()])
    assert (after - before).norm().item() == pytest.approx(recipe.lr * 1e-3, rel=1e-2)


# Two processes


def test_two_processes_train_like_one(tmp_path):
    recipe = replace(SMALL, model="resnet8", gate="spem", crop=0, sync_batchnorm=True)
    recipe = replace(recipe, epochs=1, batch_size=128, threads=2)
    one = fit(replace(recipe, threads=1), out=tmp_path / "one")
    two = fit(replace(recipe, devices=2), out=tmp_path / "two")
    torch.testing.assert_close(two.model.state_dict(), one.model.state_dict())
    for here, there in zip(without_times(one.folder), without_times(two.folder), strict=True):
        assert {k: float(v) for k, v in there.items()} == pytest.approx(
            {k: float(v) for k, v in here.items()}
        )


# The folder


def test_the_folder_holds_what_was_promised():
    recipe = replace(SMALL, model="resnet8", gate="spem", gate_options={"alpha": 0.2})
    run = fit(recipe)
    files = "recipe.yaml metrics.csv summary.json config.json model.safetensors curves.png checkpoint.pt"
    assert {path.name for path in run.folder.iterdir()} == set(files.split())
    assert load_recipe(str(run.folder / "recipe.yaml")) == recipe
    assert run.summary == json.loads((run.folder / "summary.json").read_text())
    assert run.summary["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert run.summary["final_test_top1"] == float(rows(run.folder)[-1]["test_top1"])
    best = run.summary["best_validation_epoch"]
    assert run.summary["test_top1_at_best_validation"] == float(rows(run.folder)[best]["test_top1"])
    config = load_run(run.folder)[1]
    assert config["gate_options"] == {"alpha": 0.2}
    assert config["classes"] == list("abcdefghij")
    assert (config["image_size"], config["mean"], config["std"]) == ([8, 8], [0.5], [0.5])


def test_macs_of_the_first_and_last_layer():
    assert fit(SMALL, net()).summary["macs"] == 9 * 9 * 8 + 72 * 10


def test_without_a_validation_split_its_values_are_null():
    run = fit(replace(SMALL, validation=None), net())
    assert run.summary["best_validation_epoch"] is None
    assert run.summary["test_top1_at_best_validation"] is None
    assert rows(run.folder)[0]["validation_top1"] == ""


def test_below_six_classes_top5_is_empty(monkeypatch, dataset):
    few = [
        Split(split.images[split.labels < 4], split.labels[split.labels < 4])
        for split in dataset[1:4]
    ]
    monkeypatch.setattr(
        train, "load_dataset", lambda *_, **__: Dataset("few", *few, classes=tuple("abcd"))
    )
    run = fit(SMALL, net(classes=4))
    assert [rows(run.folder)[0][f"{split}_top5"] for split in ("train", "validation", "test")] == [
        ""
    ] * 3


def test_a_model_of_the_users_own_is_trained_in_place_and_named():
    model = net()
    run = fit(replace(SMALL, epochs=15), model)
    assert run.model is model
    assert run.folder.name == "Net-plain-digits-0"
    assert run.summary["final_test_top1"] > 0.5
    with pytest.raises(ValueError, match="of your own"):
        load_run(run.folder)


def test_a_run_starts_from_stored_weights(tmp_path):
    first = fit(SMALL, net())
    gentle = replace(SMALL, lr=1e-12, weights=str(first.folder))
    second = fit(gentle, Net())
    torch.testing.assert_close(second.model.state_dict(), first.model.state_dict())


# What is refused, before anything is written


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "16-mixed"}, "precision '16-mixed' is not possible on 'cpu'"),
        ({"device": "mps"}, "'mps' was asked for"),
        ({"model": "resnett20"}, "unknown model"),
        ({"gate": "spme"}, "unknown gate"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean"),
        ({"batch_size": 299, "devices": 2}, "too few for 2 devices"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(changes, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        fit(replace(SMALL, **{"model": "resnet8"} | changes), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_with_other_outputs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 7\) for one image, patterns needs \(1, 10\)"):
        fit(SMALL, net(classes=7), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused_and_can_be_overwritten(tmp_path):
    fit(SMALL, net(), out=tmp_path / "run")
    with pytest.raises(FileExistsError, match="run exists"):
        fit(SMALL, net(), out=tmp_path / "run")
    longer = replace(SMALL, epochs=3)
    with pytest.raises(ValueError, match="epochs"):
        fit(longer, net(), out=tmp_path / "run", resume=True)
    assert len(rows(fit(longer, net(), out=tmp_path / "run", overwrite=True).folder)) == 3
    with pytest.raises(ValueError, match="out"):
        fit(SMALL, net(), resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(tmp_path):
    recipe = replace(SMALL, epochs=4, schedule="step", milestones=[2], gamma=1e30)
    with pytest.raises(ValueError, match="epoch 2 is not finite"):
        fit(recipe, net(), out=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["epoch"] == 2
    assert len(rows(tmp_path / "run")) == 2


def test_the_process_is_left_as_it_was():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    fit(replace(SMALL, threads=2, model="resnet8"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
