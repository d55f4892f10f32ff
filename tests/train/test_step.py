"""A captured step is the step: the same losses and weights, with static buffers and rates."""

import shutil
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from runs import SMALL, Net, check_same, net, rows, without_times

from spem import create_model
from spem.data.dataset import load_dataset
from spem.train import step
from spem.train.devices import create_fabric, settings
from spem.train.fitting import fit
from spem.train.recipe import Recipe
from spem.train.run import Run
from spem.train.setup import Job
from spem.train.step import check_draws

# Five full batches and one of 43 images an epoch.
GRAPH = replace(SMALL, batch_size=250, cuda_graph=True, device="auto")
VARIANTS = {
    "plain": GRAPH,
    "clipped": replace(GRAPH, ema=0.9, accumulate=3, clip_gradient=0.5, label_smoothing=0.1),
    "bf16": replace(GRAPH, schedule="step", milestones=[1], precision="bf16-mixed"),
}
WITH_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class StandIn:
    """In the place of a CUDA graph: does at each replay what it was given, and keeps count."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function):
        self.captures += 1

        def replay():
            self.replays += 1
            function()

        return replay


def never(function):
    raise AssertionError("nothing is to be captured")


def train(recipe, folder, capture, model=None, early=None):
    fabric = create_fabric(replace(recipe, cuda_graph=False, device="cpu"))
    folder.mkdir(exist_ok=True)
    with settings(fabric, recipe), patch.object(step, "record_step", capture):
        model = net(dropout=0.0) if model is None else model
        run = Run(fabric, Job(recipe, model, load_dataset("digits"), macs=0), folder)
        if early is not None:
            run._training_step._early = early
        run.train()
    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_replayed_steps_are_the_steps(variant, tmp_path):
    recipe, graph = VARIANTS[variant], StandIn()
    captured = train(recipe, tmp_path / "captured", graph)
    assert (graph.captures, graph.replays) == (1, 2 * 5 - 3)
    stepped = train(recipe, tmp_path / "stepped", never, early=10**9)
    check_same(captured, stepped)
    eager = train(replace(recipe, cuda_graph=False), tmp_path / "eager", never)
    torch.testing.assert_close(captured.model.state_dict(), eager.model.state_dict())
    for one, other in zip(captured.history, eager.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["learning_rate"] == other["learning_rate"]


def test_a_graph_reads_every_batch_and_rate_in_one_place(tmp_path):
    seen, model = [], net(dropout=0.0)
    recipe = replace(GRAPH, schedule="cosine", weight_decay=0.0)

    def capture(function):
        def replay():
            model.watched = True
            function()
            model.watched = False

        return replay

    def watch(module, args):
        if getattr(module, "watched", False):
            groups = run._training_step._groups
            seen.append((args[0].data_ptr(), id(groups[0]["lr"]), groups[0]["lr"].item()))

    model.register_forward_pre_hook(watch)
    fabric = create_fabric(replace(recipe, cuda_graph=False, device="cpu"))
    with settings(fabric, recipe), patch.object(step, "record_step", capture):
        run = Run(fabric, Job(recipe, model, load_dataset("digits"), macs=0), tmp_path)
        run.train()
    places, tensors, rates = zip(*seen, strict=True)
    assert len(seen) == 7
    assert (len(set(places)), len(set(tensors)), len(set(rates))) == (1, 1, 7)
    assert isinstance(run._training_step._groups[0]["lr"], float)


def test_a_run_goes_on_with_the_rates_of_its_checkpoint(tmp_path):
    train(replace(GRAPH, epochs=1, schedule="constant"), tmp_path / "two", StandIn())
    longer = replace(GRAPH, schedule="constant")
    resumed = train(longer, tmp_path / "two", StandIn(), model=Net(dropout=0.0))
    check_same(resumed, train(longer, tmp_path / "one", StandIn()))
    assert len(rows(tmp_path / "two")) == 2


def test_batches_that_are_never_full_are_never_captured(tmp_path):
    recipe = replace(GRAPH, batch_size=2000)
    assert len(train(recipe, tmp_path, never).history) == 2


def test_networks_that_draw_random_numbers_are_refused():
    images, before = torch.zeros(2, 1, 8, 8), torch.get_rng_state()
    with pytest.raises(ValueError, match="cuda_graph is true, but this network draws"):
        check_draws(net(dropout=0.1), images)
    with pytest.raises(ValueError, match="this network draws random numbers"):
        check_draws(create_model("resnet8", "srp", in_channels=1, rho=0.5), images)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = create_model("resnet8", "srm", in_channels=1).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    check_draws(model, images)
    assert not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "cpu"}, "device must be auto or cuda with cuda_graph, got 'cpu'"),
        ({"device": "mps"}, "device must be auto or cuda with cuda_graph, got 'mps'"),
        ({"devices": 2}, "devices must be 1 with cuda_graph, got 2"),
        ({"precision": "16-mixed"}, "precision must be 32 or bf16-mixed with cuda_graph, got"),
        ({"cuda_graph": 1}, "cuda_graph must be true or false, got 1"),
    ],
)
def test_what_a_graph_cannot_do_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**{"cuda_graph": True} | changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_cuda_device_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cuda_graph needs a CUDA device, and this run would use"):
        fit(replace(GRAPH, model="resnet8"))
    assert list(tmp_path.iterdir()) == []


ON_CUDA = replace(GRAPH, model="resnet11", gate="spem", device="cuda", crop=1)


@pytest.mark.gpu
@WITH_CUDA
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "clip_gradient": 1.0, "ema": 0.9},
        {"precision": "bf16-mixed"},
        {"gate": "srm", "channels_last": False},
        pytest.param(
            {"compile": True},
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
        ),
    ],
    ids=str,
)
def test_a_captured_run_on_a_device_loses_what_an_eager_one_loses(changes, tmp_path):
    recipe = replace(ON_CUDA, lr=0.01, **changes)
    graph = fit(recipe, out=tmp_path / "graph")
    eager = fit(replace(recipe, cuda_graph=False), out=tmp_path / "eager")
    tolerance = 0.05 if recipe.precision == "bf16-mixed" else 5e-3
    for one, other in zip(rows(graph.folder), rows(eager.folder), strict=True):
        for key in ("train_loss", "test_loss", "auxiliary_loss"):
            assert float(one[key]) == pytest.approx(float(other[key]), rel=tolerance)


@pytest.mark.gpu
@WITH_CUDA
def test_a_captured_run_repeats_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        one = fit(ON_CUDA, out=tmp_path / "one")
        assert without_times(fit(ON_CUDA, out=tmp_path / "two").folder) == without_times(one.folder)
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.gpu
@WITH_CUDA
def test_a_network_that_waits_for_the_device_is_named(tmp_path):
    model = net(dropout=0.0)
    model.before = lambda: next(model.parameters()).sum().item()
    with pytest.raises(ValueError, match="a step of this network cannot be captured"):
        fit(ON_CUDA, model, out=tmp_path / "run")
