"""Cost of one training step in `fit`'s loop over a bare PyTorch loop, on the same batches.

    python benchmarks/training_loop.py [STEPS]

Both networks start from the same weights and take their steps in turn, in one process, so that
whatever else the machine does meets both. Nothing is printed unless both end with the same weights,
bit for bit. The bare loop is also timed with its batches made beforehand.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
import torch.nn.functional as F

import spem
from spem.data.batches import Split
from spem.data.dataset import Dataset
from spem.train.devices import count_threads, create_fabric, keep_freed_memory
from spem.train.order import hash_seed
from spem.train.progress import add_line, progress_bar
from spem.train.recipe_files import load_recipe
from spem.train.run import Run
from spem.train.setup import Job

BATCH, WARM_UP = 128, 5
RECIPE = load_recipe(
    "cifar_quick",
    gate="spem",
    schedule="constant",
    warmup_epochs=0,
    device="cpu",
    precision="32",
)


def random_images(count: int) -> Split:
    return Split(
        torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (count,))
    )


def create_network() -> torch.nn.Module:
    torch.manual_seed(RECIPE.seed)
    network = spem.create_model(RECIPE.model, RECIPE.gate)
    return torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)


class BareLoop:
    """What one would write by hand: the batch, the loss, one step of SGD."""

    def __init__(self, run: Run):
        self.network = create_network().train()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            RECIPE.lr,
            momentum=RECIPE.momentum,
            nesterov=RECIPE.nesterov,
            weight_decay=RECIPE.weight_decay,
        )
        shuffle = torch.Generator().manual_seed(hash_seed(RECIPE.seed, 0))
        self.batches = run.batches["train"].shuffled(torch.randperm(run.images, generator=shuffle))

    def make_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(hash_seed(RECIPE.seed, 0, step, 0))
        return next(self.batches)

    def take_step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        loss = F.cross_entropy(self.network(images), labels) + spem.auxiliary_loss(self.network)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(steps: int, folder: Path) -> torch.Tensor:
    """Return the seconds of each step, (steps, 3): ours, bare making its batch, bare without."""
    # One batch more than is timed, so that no step ends the epoch.
    data = Dataset(
        "random", random_images(BATCH * (steps + 1)), None, random_images(BATCH), ("",) * 10
    )
    ours = Run(create_fabric(RECIPE), Job(RECIPE, create_network(), data, macs=0), folder)
    bare, seconds = BareLoop(ours), []
    with progress_bar(RECIPE.progress) as bar:
        advance = add_line(bar, ours)
        for step in range(steps):
            start = perf_counter()
            advance(ours.take_step())
            ours_done = perf_counter()
            batch = bare.make_batch(step)
            batch_made = perf_counter()
            bare.take_step(*batch)
            bare_done = perf_counter()
            seconds.append((ours_done - start, bare_done - ours_done, bare_done - batch_made))
    own, other = ours.model.state_dict(), bare.network.state_dict()
    if not all(torch.equal(own[name], other[name]) for name in own):
        sys.exit("the two loops do not compute the same: nothing was measured")
    return torch.tensor(seconds, dtype=torch.float64)[WARM_UP:]


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    keep_freed_memory()
    with TemporaryDirectory() as folder:
        seconds = measure(steps, Path(folder))
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    print(
        f"{RECIPE.model} + {RECIPE.gate}, batch {BATCH}, CPU, {count_threads(RECIPE)} threads,"
        f" torch {torch.__version__}, {len(seconds)} steps: 10 %, 50 %, 90 % quantile"
    )
    rows = {
        "our loop, seconds a step": seconds[:, 0],
        "bare loop, seconds a step": seconds[:, 1],
        "ratio": seconds[:, 0] / seconds[:, 1],
        "ratio to a bare loop that is given its batches": seconds[:, 0] / seconds[:, 2],
    }
    for name, values in rows.items():
        print(f"{name:48}", *(f"{value:.4f}" for value in values.quantile(quantiles)))


if __name__ == "__main__":
    main()
