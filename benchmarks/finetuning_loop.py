"""Cost of fine-tuning by `fit`'s loop over a bare PyTorch loop, on the same batches.

    .venv-interop/bin/python benchmarks/finetuning_loop.py [STEPS]

timm's ResNet-18 at 96 pixels, plain and with attached SPEM gates. Both loops start from the same
weights and take their steps in turn, in one process, so that whatever else the machine does meets
both; in every second pair the bare loop is first. Nothing is printed unless both loops end
with the same weights, bit for bit, and the same mean loss. The goal is a ratio of at most 1.03.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spem
from spem.data.batches import Split
from spem.data.dataset import Dataset
from spem.train.devices import count_threads, create_fabric, keep_freed_memory
from spem.train.order import hash_seed, order_rows
from spem.train.progress import add_line, progress_bar
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.run import Run
from spem.train.setup import Job

BATCH, SIDE, CLASSES, WARM_UP, GOAL = 32, 96, 5, 3, 1.03
QUANTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


def make_recipe(gate: str | None) -> Recipe:
    keys = {"model": "timm:resnet18", "gate": gate, "batch_size": BATCH, "crop": 0, "lr": 0.01}
    constant = {"schedule": "constant", "warmup_epochs": 0, "device": "cpu", "precision": "32"}
    return load_recipe("cifar_quick", **keys, **constant)


def create_network(gate: str | None) -> nn.Module:
    torch.manual_seed(0)
    network = spem.create_model("timm:resnet18", gate, CLASSES)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class BareLoop:
    """What one would write by hand: the batch, the loss, one step of SGD."""

    def __init__(self, run: Run, recipe: Recipe, gate: str | None):
        self.network, self.gate = create_network(gate).train(), gate
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        self.batches = run.batches["train"].shuffled(
            order_rows(run.job.dataset.train, recipe.seed, 0)
        )
        self.seed, self.step = recipe.seed, 0

    def take_step(self) -> Tensor:
        torch.manual_seed(hash_seed(self.seed, 0, self.step, 0))
        images, labels = next(self.batches)
        loss = F.cross_entropy(self.network(images), labels)
        total = loss if self.gate is None else loss + spem.auxiliary_loss(self.network)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.detach()


def random_images(count: int) -> Split:
    images = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    return Split(images, torch.randint(CLASSES, (count,)))


def measure(gate: str | None, steps: int, folder: Path) -> Tensor:
    """Return the seconds of each pair of steps, (steps, 2): `fit`'s loop, the bare one."""
    # One batch more than is timed, so that no step ends the epoch.
    train = random_images(BATCH * (steps + 1))
    data = Dataset("random", train, None, random_images(BATCH), ("",) * CLASSES)
    recipe = make_recipe(gate)
    ours = Run(create_fabric(recipe), Job(recipe, create_network(gate), data, macs=0), folder)
    bare, seconds, losses = BareLoop(ours, recipe, gate), [], []
    with progress_bar(recipe.progress) as bar:
        advance = add_line(bar, ours)

        works = [lambda: advance(ours.take_step()), lambda: losses.append(bare.take_step())]
        for step in range(steps):
            times = [0.0, 0.0]
            for turn in (0, 1) if step % 2 else (1, 0):
                start = perf_counter()
                works[turn]()
                times[turn] = perf_counter() - start
            seconds.append(times)
    check(ours, bare, losses)
    return torch.tensor(seconds, dtype=torch.float64)[WARM_UP:]


def check(ours: Run, bare: BareLoop, losses: list[Tensor]) -> None:
    """Stop the program unless both loops had the same losses and have the same weights."""
    own, other = ours.model.state_dict(), bare.network.state_dict()
    same = all(torch.equal(own[name], other[name]) for name in own)
    mean = ours.metrics["loss"].compute().item()
    if not same or abs(mean - torch.stack(losses).double().mean().item()) > 1e-6 * abs(mean):
        sys.exit("the two loops do not compute the same: nothing was measured")


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    keep_freed_memory()
    print(
        f"timm:resnet18, {SIDE} pixels, batch {BATCH}, CPU, {count_threads(make_recipe(None))}"
        f" threads, torch {torch.__version__}; median (quartiles), goal at most {GOAL}"
    )
    for gate in (None, "spem"):
        with TemporaryDirectory() as folder:
            seconds = measure(gate, steps + WARM_UP, Path(folder))
        ratio = (seconds[:, 0] / seconds[:, 1]).quantile(QUANTILES).tolist()
        ours, bare = seconds.median(0).values.tolist()
        print(
            f"{gate or 'plain':6} fit over bare {ratio[1]:.3f} ({ratio[0]:.3f} to {ratio[2]:.3f}),"
            f" n = {len(seconds)}; {ours:.3f} and {bare:.3f} s a step"
        )


if __name__ == "__main__":
    main()
