"""One step of the optimiser: forward, loss, backward, update; on CUDA also as one CUDA graph."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer

from spem._extras import needs_extra
from spem.gates import auxiliary_loss
from spem.train.devices import record_graph
from spem.train.loss import Loss, to_labels
from spem.train.nonfinite import NotFiniteError, find_first, is_finite
from spem.train.recipe import Recipe

with needs_extra("train"):
    from lightning_fabric import Fabric

# Libraries choose their algorithms and allocate in the first steps, which a capture does not allow.
_WARM_UP = 3


class Part(NamedTuple):
    """Losses (n,), logits (n, classes), labels (n,) and auxiliary loss () of a micro-batch.

    The label of a mixed image is that of its largest share.
    """

    losses: Tensor
    logits: Tensor
    labels: Tensor
    auxiliary: Tensor


class Step:
    """Forward, loss, backward, clipping and an optimiser's step on this process's share of a batch.

    Args:
        fabric: launched.
        recipe: compile, accumulate, clip_gradient, loss and label_smoothing.
        model: the network.
        optimizer: of its parameters.
        weights: of the classes, (classes,), or None.

    Attributes:
        network, optimizer: both as `fabric.setup` wraps them.
        checks: whether each step is checked to be finite before it changes the weights.
    """

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        model: nn.Module,
        optimizer: Optimizer,
        weights: Tensor | None = None,
    ):
        self.fabric, self.recipe, self.model = fabric, recipe, model
        self._loss = Loss(recipe, None if weights is None else weights.to(fabric.device))
        # A device that computes on its own would be waited for at every step.
        self.checks = fabric.device.type == "cpu" or recipe.on_nonfinite == "skip"
        network: Any = torch.compile(model) if recipe.compile else model
        self.network, self.optimizer = fabric.setup(network, optimizer)

    def __call__(self, images: Tensor, targets: Tensor, batch: int) -> list[Part]:
        """Take the step, in as many micro-batches as the recipe's `accumulate` says.

        Args:
            images: (n, C, H, W).
            targets: labels, int64 (n,), or shares of the classes, float32 (n, classes).
            batch: number of images in the whole batch, over all processes.

        Raises:
            NotFiniteError: the loss or the gradient of any process is not finite, and `checks`. The
                weights are as before, with `skip` the running statistics, too.
        """
        skips = self.recipe.on_nonfinite == "skip"
        before = [buffer.clone() for buffer in self.model.buffers()] if skips else []
        generator = torch.get_rng_state()
        count = min(self.recipe.accumulate, len(targets))
        pieces = zip(images.tensor_split(count), targets.tensor_split(count), strict=True)
        parts = []
        for index, (x, y) in enumerate(pieces, start=1):
            with self.fabric.no_backward_sync(self.network, enabled=index < count):
                logits = self.network(x)
                losses = self._loss(logits, y)
                auxiliary = auxiliary_loss(self.model)
                # Processes average their gradients, so shares are taken of the mean batch.
                share = len(y) * self.fabric.world_size / batch
                self.fabric.backward(share * (losses.mean() + auxiliary))
            found = losses.detach(), logits.detach(), to_labels(y), auxiliary.detach()
            parts.append(Part(*found))
            # Frees the graph before the next micro-batch builds its own.
            del logits, losses, auxiliary
        if self.checks and not self._agree(self._is_finite(parts)):
            self._refuse(images.tensor_split(count), generator, before)
        if (norm := self.recipe.clip_gradient) is not None:
            # The loss scaling of 16-mixed itself skips steps whose gradient is not finite.
            options: Any = {"max_norm": norm, "error_if_nonfinite": False}
            self.fabric.clip_gradients(self.network, self.optimizer, **options)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return parts

    def _is_finite(self, parts: Sequence[Part]) -> bool:
        """Return whether the losses and, where steps are skipped, the gradients here are finite.

        A loss is told in no time; a run that stops at the next step has lost as little.
        """
        losses = [loss for part in parts for loss in (part.losses, part.auxiliary)]
        # The loss scaling of 16-mixed itself skips steps whose gradient is not finite.
        if self.recipe.on_nonfinite == "stop" or self.recipe.precision == "16-mixed":
            return is_finite(losses, [])
        return is_finite(losses, [p.grad for p in self.model.parameters() if p.grad is not None])

    def _agree(self, finite: bool) -> bool:
        """Return whether a step is finite in every process."""
        if self.fabric.world_size == 1:
            return finite
        least = torch.tensor(float(finite), device=self.fabric.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        return bool(least.item())

    def _refuse(
        self, batches: Sequence[Tensor], generator: Tensor, before: Sequence[Tensor]
    ) -> NoReturn:
        """Undo what a step has changed so far, and raise the error that says where it failed."""
        now = torch.get_rng_state()
        torch.set_rng_state(generator)  # the same dropout
        with self.fabric.autocast():
            where = find_first(self.model, batches)
        torch.set_rng_state(now)
        self.optimizer.zero_grad()
        for buffer, value in zip(self.model.buffers(), before, strict=bool(before)):
            buffer.copy_(value)
        raise NotFiniteError(where)


class CapturedStep(Step):
    """A step that is captured once and replayed for every full batch.

    The first full batches run operation by operation, as does the last, smaller batch of an epoch.
    Each replayed batch is copied to the tensors that the graph reads; the next replay overwrites
    the returned tensors. SGD reads its learning rates from tensors, which are set before each
    step; in the optimiser's `param_groups` they stay numbers, so schedules and checkpoints are
    those of a run without a graph.

    The arguments are those of `Step`. The optimiser is SGD with `fused=True`, the only form that
    reads a rate from a tensor without waiting for the device.
    """

    def __init__(self, fabric: Fabric, *work: Any):
        super().__init__(fabric, *work)
        self.checks = False
        self._early = _WARM_UP
        self._rates = [torch.zeros((), device=fabric.device) for _ in self._groups]
        self._replay: Callable[[], None] | None = None
        self._parts: list[Part] = []

    def __call__(self, images: Tensor, targets: Tensor, batch: int) -> list[Part]:
        """Take the step; the arguments and the result are those of `Step`."""
        full = batch == self.recipe.batch_size
        with self._rates_as_tensors():
            if self._early or not full:
                self._early -= full
                return super().__call__(images, targets, batch)
            if self._replay is None:
                self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
                self._replay = record_step(self._work)
            self._images.copy_(images)
            self._targets.copy_(targets)
            self._replay()
        return self._parts

    @property
    def _groups(self) -> list[dict[str, Any]]:
        # Read at each use, because loading a checkpoint replaces them.
        return self.optimizer.optimizer.param_groups

    def _work(self) -> None:
        self._parts = super().__call__(self._images, self._targets, self.recipe.batch_size)

    @contextmanager
    def _rates_as_tensors(self) -> Iterator[None]:
        numbers = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate.fill_(group["lr"])
        try:
            yield
        finally:
            for group, number in zip(self._groups, numbers, strict=True):
                group["lr"] = number


def record_step(function: Callable[[], None]) -> Callable[[], None]:
    """Record a step as a CUDA graph (see `record_graph`) and return the function that replays it.

    Raises:
        ValueError: the step does what a graph cannot record, such as waiting for the device.
    """
    try:
        return record_graph(function)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"cuda_graph is true, but a step of this network cannot be captured: {reason}"
        ) from error


def create_step(
    fabric: Fabric,
    recipe: Recipe,
    model: nn.Module,
    optimizer: Optimizer,
    weights: Tensor | None = None,
) -> Step:
    """Return the step of a recipe, captured where it has `cuda_graph`; see `Step`."""
    step = CapturedStep if recipe.cuda_graph else Step
    return step(fabric, recipe, model, optimizer, weights)


def check_draws(model: nn.Module, images: Tensor) -> None:
    """Raise ValueError if a network draws random numbers in training: a graph would repeat them.

    Args:
        model: the network, which is not changed.
        images: a batch of two, (2, C, H, W).
    """
    twin = deepcopy(model).cpu().train()
    with torch.random.fork_rng([]), torch.no_grad():
        before = torch.get_rng_state()
        twin(images)
        drawn = not torch.equal(torch.get_rng_state(), before)
    if drawn:
        raise ValueError(
            "cuda_graph is true, but this network draws random numbers in its forward pass"
            " (dropout, random regions, a supernet), which a captured step would repeat"
        )
