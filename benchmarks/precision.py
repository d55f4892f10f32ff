"""Training in bf16-mixed over training in float32, where `precision: auto` chooses bf16-mixed.

    python benchmarks/precision.py [ROUNDS]

Both networks start from the same weights and take their steps in turn. Nothing is timed unless
their first losses agree to 1 %. A recipe may say `auto` where no ratio of its case is above 1.
"""

import sys
from dataclasses import replace

import torch

from spem.compare.costs import make_work, measuring
from spem.compare.timing import fastest_kernels, interleave, ratios
from spem.data.batches import Batches, Split
from spem.data.dataset import Dataset
from spem.train.devices import choose_precision, keep_freed_memory
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.resolving import resolve
from spem.train.setup import build

CASES = [("cifar_quick", gate) for gate in (None, "spem")] + [("digits", "spem")]


def make_dataset(recipe: Recipe) -> Dataset:
    channels, side = (1, 8) if recipe.data == "digits" else (3, 32)
    torch.manual_seed(recipe.seed)
    images = torch.randint(256, (recipe.batch_size, channels, side, side), dtype=torch.uint8)
    split = Split(images, torch.randint(10, (recipe.batch_size,)))
    return Dataset("random", split, None, split, tuple("0123456789"))


def first_loss(recipe: Recipe, dataset: Dataset) -> float:
    images, labels = next(Batches(dataset.train, recipe.batch_size).in_order())
    dtype = torch.bfloat16 if recipe.precision == "bf16-mixed" else torch.float32
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        logits = build(recipe, dataset).train()(images)
    return torch.nn.functional.cross_entropy(logits.float(), labels).item()


def measure(name: str, gate: str | None, rounds: int) -> dict[int, float]:
    """Return quantiles of the time of a step in bf16-mixed over that in float32."""
    settings = {"data": "digits" if name == "digits" else "cifar10", "gate": gate}
    recipe = resolve(load_recipe(name, precision="32", device="cpu", **settings))
    recipes = {p: replace(recipe, precision=p) for p in ("32", "bf16-mixed")}
    dataset = make_dataset(recipe)
    losses = [first_loss(each, dataset) for each in recipes.values()]
    if abs(losses[0] - losses[1]) > 0.01 * losses[0]:
        sys.exit(f"{name}, {gate}: the first losses are {losses}: nothing was timed")
    batch = next(Batches(dataset.train, recipe.batch_size).in_order())
    with measuring(recipe, fastest_kernels(torch.device("cpu"))) as device:
        works = {p: make_work(r, build(r, dataset), batch).train for p, r in recipes.items()}
        return ratios(interleave(works, rounds, device), "bf16-mixed", "32")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    keep_freed_memory()
    chosen = choose_precision(Recipe(precision="auto", device="cpu"))
    print(f"precision: auto is {chosen} on this processor, torch {torch.__version__}")
    for name, gate in CASES:
        found = measure(name, gate, rounds)
        print(
            f"{name}, {gate or 'none'}: bf16-mixed takes {found[50]:.3f} of float32's time"
            f" ({found[25]:.3f}–{found[75]:.3f}, {rounds} pairs)"
        )


if __name__ == "__main__":
    main()
