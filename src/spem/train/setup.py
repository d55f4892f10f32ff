"""What a run needs before it starts: its data, its network, and whether they fit each other."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spem import kernels
from spem._extras import needs_extra
from spem._messages import say, shorten
from spem.data.batches import Batches, measure_statistics
from spem.data.dataset import load_dataset
from spem.data.describe import describe as describe_data
from spem.data.reading import OnBadImage
from spem.data.splits import Dataset
from spem.gates import GATES
from spem.models import create_model
from spem.models.names import imagenet_note
from spem.models.user_files import import_files
from spem.norm import GatedBatchNorm2d
from spem.surgery.slots import find_gates
from spem.train.batch_size import fill_batch_size
from spem.train.devices import count_threads, count_workers
from spem.train.freezing import Freezing
from spem.train.loggers import check_logger
from spem.train.loss import class_weights
from spem.train.optimizer import create_optimizer
from spem.train.order import training_seed
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.start import load_start
from spem.train.step import check_draws
from spem.train.stopping import check_patience
from spem.train.synchronised import synchronise

with needs_extra("train"):
    from lightning_fabric import Fabric

# Multiply-adds, forward and backward, that make compiling the CPU kernels (up to half a minute)
# worth it: about two minutes of training on two cores.
_WORTH_KERNELS = 1e13


class _UserFiles(tuple[str, ...]):
    """Python files of the user's, which are run in a process that receives them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return import_files, (tuple(self),)


class Job(NamedTuple):
    """A run that is ready to start: checked, but nothing is written or trained yet.

    Attributes:
        recipe: everything that decides the run, with the number of its threads.
        model: the network with its initial weights.
        dataset: its splits.
        macs: multiply-adds of the network for one image.
    """

    recipe: Recipe
    model: nn.Module
    dataset: Dataset
    macs: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the files first: the classes of the model may be defined in them."""
        return _receive_job, (_UserFiles(self.recipe.import_), *self)


def _receive_job(files: None, *fields: Any) -> Job:
    return Job(*fields)


def prepare(
    fabric: Fabric,
    recipe: Recipe,
    model: nn.Module | None = None,
    resumed: Path | None = None,
    dataset: Dataset | None = None,
    cache: Path | None = None,
) -> Job:
    """Load the data, build the network and check that they fit.

    Args:
        fabric: as `create_fabric` returns it for the recipe.
        recipe: as `resolve` returns it.
        model: the network to train; None: the recipe's.
        resumed: the folder of the run that is continued; None: of a new run.
        dataset: the recipe's, if it is loaded already.
        cache: see `load_dataset`.

    Raises:
        ValueError: recipe, data, model and machine do not fit.
        FileNotFoundError: the data or the weights are not there.
        ImportError: the logger is not installed.
    """
    check_logger(recipe)
    dataset = load_data(recipe, cache=cache) if dataset is None else dataset
    recipe = fill_statistics(recipe, dataset, resumed)
    _check_batches(fabric.world_size, recipe, dataset)
    class_weights(recipe, dataset.train.labels, dataset.classes)
    check_patience(recipe, dataset)
    network = build(recipe, dataset) if model is None else model
    device = next(network.parameters()).device
    image = torch.zeros(1, *dataset.train.images.shape[1:], device=device)
    macs, logits = count_macs(network, image)
    if logits.shape != (1, len(dataset.classes)):
        raise ValueError(
            f"the model gives {tuple(logits.shape)} for one image, {dataset.name} needs"
            f" {(1, len(dataset.classes))}"
        )
    if recipe.batch_size == "auto":
        recipe = fill_batch_size(recipe, network, dataset, resumed)
        say(f"batch_size auto: {recipe.batch_size} images a step")
    if recipe.cuda_graph:
        check_draws(network, torch.zeros(2, *dataset.train.images.shape[1:]))
    continued = resumed is not None and (resumed / "checkpoint.pt").exists()
    if resumed is not None and not continued and fabric.is_global_zero:
        say(f"{resumed} holds no checkpoint yet: the run starts at its beginning.")
    if not continued:
        for sentence in load_start(network, recipe):
            if fabric.is_global_zero:
                say(sentence)
    Freezing(network, recipe)
    create_optimizer(network, recipe)
    if recipe.sync_batchnorm and fabric.world_size > 1:
        network = synchronise(network, fabric.device)
    return Job(replace(recipe, threads=count_threads(recipe)), network, dataset, macs)


def _check_batches(world_size: int, recipe: Recipe, dataset: Dataset) -> None:
    """Raise ValueError unless every process gets an image of each batch of a data set."""
    size = 2 if recipe.batch_size == "auto" else recipe.batch_size
    Batches(dataset.train, size, mean=recipe.mean, std=recipe.std, crop=recipe.crop)
    last = len(dataset.train.labels) % size or size
    if last < world_size:
        raise ValueError(
            f"batch_size {recipe.batch_size} leaves {last} images of {len(dataset.train.labels)}"
            f" for the last step, too few for {world_size} devices"
        )


def load_data(
    recipe: Recipe, on_bad_image: OnBadImage | None = None, cache: Path | None = None
) -> Dataset:
    """Return the data set of a recipe with its splits; raises what `load_dataset` raises.

    Args:
        recipe: as `resolve` returns it.
        on_bad_image: replaces that of the recipe.
        cache: see `load_dataset`.
    """
    return load_dataset(
        recipe.data,
        data_dir=recipe.data_dir,
        download=recipe.download,
        validation=recipe.validation,
        seed=recipe.seed,
        image_size=recipe.image_size,
        interpolation=recipe.interpolation,
        crop_ratio=recipe.crop_ratio,
        on_bad_image=on_bad_image or recipe.on_bad_image,
        folds=recipe.folds,
        fold=recipe.fold,
        cache=cache,
        loader="stream" if recipe.resized_crop else recipe.loader,
        workers=count_workers(recipe),
    )


def fill_statistics(recipe: Recipe, dataset: Dataset, resumed: Path | None = None) -> Recipe:
    """Return a recipe with the mean and the std that it leaves open.

    Args:
        recipe: as `resolve` returns it.
        dataset: its data; mean and std of the training images are measured.
        resumed: the folder of the run that is continued, whose values are taken instead.
    """
    if recipe.mean is not None and recipe.std is not None:
        return recipe
    if resumed is None:
        mean, std = measure_statistics(dataset.train.images)
    else:
        stored = load_recipe(str(resumed / "recipe.yaml"))
        mean, std = stored.mean, stored.std
    found = {"mean": mean, "std": std}
    return replace(recipe, **{k: v for k, v in found.items() if getattr(recipe, k) is None})


def announce(recipe: Recipe, dataset: Dataset) -> None:
    """Print what a run's data are, and how a folder of images was understood."""
    lines = [*describe_data(dataset), *_note_epochs(recipe)]
    if dataset.folder is not None and recipe.mean is not None:
        lines += [_describe_resizing(recipe)] if recipe.interpolation or recipe.crop_ratio else []
        lines.append(f"mean {recipe.mean}, std {recipe.std}")
    say("\n".join(lines))


def _note_epochs(recipe: Recipe) -> list[str]:
    """Return a warning for each part of a run that is as long as the run."""
    warnings, epochs = [], recipe.epochs
    if epochs > 1 and recipe.warmup_epochs >= epochs:
        warnings.append(
            f"warning: warmup_epochs is {recipe.warmup_epochs:g} of {epochs} epochs: the learning"
            " rate climbs to the end of the run"
        )
    if recipe.freeze_epochs is not None and recipe.freeze_epochs >= epochs:
        warnings.append(
            f"warning: freeze_epochs is {recipe.freeze_epochs} of {epochs} epochs: what"
            f" {shorten(recipe.freeze)} freezes is never trained"
        )
    return warnings


def _describe_resizing(recipe: Recipe) -> str:
    """Return how the images of a folder are resized, where they do not just cover the size."""
    method = f"resized by {recipe.interpolation or 'bilinear'} interpolation"
    if recipe.crop_ratio is None:
        return method
    return f"{method}, {recipe.crop_ratio:.3g} of the shorter side cut out of the centre"


def build(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """Return the network of a recipe for a data set, with the initial weights of its seed."""
    import_files(recipe.import_)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(training_seed(recipe))
        return create_model(
            recipe.model,
            recipe.gate,
            num_classes=len(dataset.classes),
            in_channels=dataset.train.images.shape[1],
            block=recipe.block,
            placement=recipe.placement,
            at=recipe.at,
            mask=recipe.mask,
            dropout=recipe.dropout,
            drop_path=recipe.drop_path,
            **recipe.gate_options,
        )


def count_macs(model: nn.Module, image: Tensor) -> tuple[int, Tensor]:
    """Return the multiply-adds of convolutions and linear layers for one image, and its logits.

    Args:
        model: it is left in evaluation mode.
        image: (1, C, H, W), on the device of the model.
    """
    # Compiled kernels would be traced under the counter, which then adds symbolic sizes.
    with torch.no_grad(), kernels.use("eager"), FlopCounterMode(display=False) as counter:
        logits = model.eval()(image)
    return counter.get_total_flops() // 2, logits


def describe(job: Job) -> str:
    """Return a line about a network: name, gate, size, multiply-adds, input and classes."""
    recipe, parameters = job.recipe, sum(each.numel() for each in job.model.parameters())
    image = "×".join(map(str, job.dataset.train.images.shape[1:]))
    classes = {cls: name for name, cls in GATES.items()}
    attached = (type(gate) for *_, gate in find_gates(job.model))
    names = dict.fromkeys(classes.get(cls, cls.__name__) for cls in attached)
    gate = recipe.gate or " and ".join(names)  # a network of the user's may come with gates
    gates = f"with {gate} gates" if gate else "without gates"
    line = (
        f"{recipe.model} {gates}: {parameters:,} parameters, {job.macs / 1e6:,.1f} M multiply-adds"
        f" per {image} image, {len(job.dataset.classes)} classes"
    )
    note = imagenet_note(recipe.model)
    return f"{line} ({note})" if note else line


def choose_kernels(fabric: Fabric, jobs: Sequence[Job]) -> AbstractContextManager[None]:
    """Return the context in which long runs on the CPU use compiled kernels, if these can be made.

    The choice is the same whenever a run is resumed on the same machine.

    Args:
        fabric: of the first run.
        jobs: the runs of this process; they share the choice.
    """
    norms = any(isinstance(m, GatedBatchNorm2d) for job in jobs for m in job.model.modules())
    if kernels.is_forced() or fabric.device.type != "cpu" or not norms or jobs[0].recipe.compile:
        return nullcontext()
    images = [len(job.dataset.train.images) * job.recipe.epochs for job in jobs]
    if sum(3 * job.macs * n for job, n in zip(jobs, images, strict=True)) < _WORTH_KERNELS:
        return nullcontext()
    if reason := kernels.why_not("compiled"):
        logging.getLogger("spem").warning("%s; falling back to eager PyTorch", reason)
        return nullcontext()
    return kernels.use("compiled")
