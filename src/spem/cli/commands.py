"""The commands as functions: their signatures are the flags, their docstrings the help."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spem._messages import not_found, say
from spem.cli.trained import Trained
from spem.compare.tables import show
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe

if TYPE_CHECKING:
    from spem.data import Dataset

_MEASURES = ("images", "loss", "top1", "top5")
_RESULTS = {
    "final_test_top1": "test top-1 after the last epoch",
    "test_top1_at_best_validation": "test top-1 at the best epoch by validation",
    "best_validation_epoch": "best epoch by validation",
    "best_test_top1": "best test top-1 of all epochs (as the paper reports)",
    "parameters": "parameters",
    "macs": "multiply-adds of one image",
    "images_per_second": "training images per second",
    "seconds": "seconds in all",
    "device": "device",
    "seed": "seed",
}


def train(
    recipe_keys: dict[str, Any],
    *,
    config: str | None = None,
    out: str | None = None,
    resume: str | bool = False,
    overwrite: bool = False,
    print_config: bool = False,
) -> None:
    """Train a network and keep everything about the run in one folder.

    Args:
        recipe_keys: the keys of the recipe that were given.
        config: a bundled recipe (paper, digits, cifar_quick, finetune, imagenet) or a YAML file
            with the keys below; if not given: digits for the digits, cifar_quick for any other
            data.
        out: folder of the run; if not given: the next free one below runs/.
        resume: continue the run in this folder, or else in --out, exactly where it stopped; with
            more --epochs also a finished one, if its schedule is step or constant.
        overwrite: replace the run in --out.
        print_config: print the complete recipe as YAML, which --config takes, and train nothing.
    """
    if resume:
        config, out = _resumed(config, out, resume)
        # A folder may be somebody else's: its files are run only where the command names them.
        recipe_keys = {"import": []} | recipe_keys
    recipe = _recipe(config, recipe_keys)
    if print_config:
        print(recipe.to_yaml(), end="")
        return
    from spem.train.fitting import fit

    result = fit(recipe, out=out, resume=bool(resume), overwrite=overwrite)
    rows = ((name, _count_from_one(key, result.summary[key])) for key, name in _RESULTS.items())
    show(["result", ""], rows)
    say(f"run folder: {result.folder}")


def _count_from_one(key: str, value: Any) -> Any:
    """Return a value of a summary, whose epochs count from 0, as people count them."""
    if key != "best_validation_epoch" or value is None:
        return value
    return value | {"mean": value["mean"] + 1} if isinstance(value, dict) else value + 1


def show_data(
    recipe_keys: dict[str, Any], data: str, *, config: str | None = None, out: str | None = None
) -> None:
    """Show how a folder of images is understood, before anything is trained on it.

    Prints its layout, the number of images of each class, their sizes, mean and std, the images
    that cannot be read, and duplicates across splits. Draws the first augmented training images as
    the network will see them.

    Args:
        recipe_keys: the keys of the recipe that were given.
        data: a folder of images; or digits, cifar10, cifar100.
        config: the recipe whose keys are taken, as for train.
        out: the PNG file of the drawing; if not given: NAME-batches.png for the folder NAME.
    """
    from spem.data.describe import count_classes
    from spem.train.preview import draw_first_batches
    from spem.train.resolving import resolve
    from spem.train.setup import announce, fill_statistics, load_data

    recipe = resolve(_recipe(config, recipe_keys | {"data": data}))
    dataset = load_data(recipe, on_bad_image="list")
    recipe = fill_statistics(recipe, dataset)
    announce(recipe, dataset)
    show(["class", "training", "validation", "test"], count_classes(dataset))
    if dataset.folder is not None and dataset.folder.unreadable:
        print(
            "spem train stops at an image that cannot be read: remove it, or give --on-bad-image"
            " skip, which leaves out up to 1 % of the training images"
        )
    path = Path(out or f"{Path(data).resolve().name}-batches.png")
    draw_first_batches(path, recipe, dataset)
    say(f"the first training images: {path}")


def find_learning_rate(
    recipe_keys: dict[str, Any],
    *,
    config: str | None = None,
    out: str = "learning-rates.png",
    steps: int = 100,
) -> None:
    """Find a learning rate: train some steps while the rate climbs, and draw the loss.

    The learning-rate range test (Smith 2017), as fastai's lr_find: the rate climbs from 1e-7 to 10,
    the smoothed loss is watched until it exceeds four times its smallest value, and the rate in the
    longest valley is suggested. Nothing else is written.

    Args:
        recipe_keys: the keys of the recipe that were given.
        config: as for train.
        out: the PNG file of the picture; the numbers are written to a CSV file beside it.
        steps: from the lowest rate to the highest.
    """
    from spem.train.rate_range import find_rate, write_range

    path, recipe = Path(out), _recipe(config, recipe_keys)
    if path.suffix != ".png":
        raise ValueError(f"out is {out}, must end in .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    found = find_rate(recipe, steps=steps)
    if not found.losses:
        raise ValueError("the loss of the first step is not finite: look at the data and weights")
    gate = f" with {recipe.gate}" if recipe.gate else ""
    write_range(path, found, f"{recipe.model}{gate} on {recipe.data}, {recipe.optimizer}")
    lowest = found.rates[found.smoothed.index(min(found.smoothed))]
    rows = [("lowest smoothed loss at", f"{lowest:.2g}"), ("steps", len(found.losses))]
    if found.suggestion is None:
        rows.insert(0, ("suggestion", "none: the loss does not fall"))
    else:
        rows.insert(0, ("suggestion (fastai's valley)", f"--lr {found.suggestion:.2g}"))
    show(["learning rate", ""], rows)
    if found.suggestion is not None and found.is_flat:
        say(
            "warning: the loss hardly falls, less than it varies from step to step, so the"
            " suggestion is little more than chance: look at the picture, and give more --steps"
        )
    say(f"the loss over the rate: {path}, {path.with_suffix('.csv').name}")


def search_placement(
    recipe_keys: dict[str, Any],
    *,
    config: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    steps: int = 300,
) -> None:
    """Find the blocks of a network that benefit from a gate.

    Trains a supernet, in which the blocks of a stage share one gate, then a controller that learns
    on the held-out images which blocks use it. The result is written to placement.json in the
    folder of the supernet's run.

    Args:
        recipe_keys: the keys of the recipe that were given; `gate` is spem if not given.
        config: as for train.
        out: folder of the supernet's run; if not given: the next free one below runs/.
        overwrite: replace the run in --out.
        steps: steps of the controller.
    """
    from spem.train.placement_search import Search
    from spem.train.placement_search import search_placement as search
    from spem.train.resolving import resolve

    recipe = _recipe(config, recipe_keys)
    if "gate" in recipe_keys and recipe.gate is None:
        raise ValueError("gate is none, but a search for the places of gates needs one")
    gate = recipe.gate or "spem"
    recipe = resolve(replace(recipe, gate=gate))
    plain = replace(recipe, gate=None, gate_options={})
    run: dict[str, Any] = {"settings": Search(steps=steps), "out": out, "overwrite": overwrite}
    found = search(plain, gate, **run, **recipe.gate_options)
    rows = [
        ("mask", str(found.mask).replace(" ", "")),
        ("gated blocks", f"{sum(found.mask)} of {len(found.mask)}"),
        ("validation top-1 of the supernet with this mask", found.accuracy[0]),
        ("validation top-1 of the supernet without gates", found.accuracy[1]),
    ]
    show(["placement", ""], rows)
    say(f"run folder: {found.folder}")


def report_gates(trained: Trained, *, fold: float | None = None, out: str | None = None) -> None:
    """Measure how much the gates of a trained network vary from image to image.

    The spread of a gate is the standard deviation of its multipliers over the validation images,
    or the training images where there are none, relative to their mean: 0 for a constant gate,
    which can be folded into its norm without loss.

    Args:
        trained: the network and its data.
        fold: fold the gates whose spread is at most this number, and show the accuracy on the test
            images before and after.
        out: new folder for the folded network; evaluate and predict take it as a run.
    """
    from spem import explain

    if out is not None and fold is None:
        raise ValueError("--out takes the folded network: give --fold a threshold as well")
    if out is not None and Path(out).exists():
        raise FileExistsError(f"{out} exists: name another folder")
    dataset = trained.load_data()
    held_out = trained.batches(dataset.validation or dataset.train)
    report = explain.gate_report(trained.model, held_out.in_order())
    rows = [(n, s.mean.mean().item(), s.std.mean().item(), s.spread) for n, s in report.items()]
    show(["gate", "mean", "deviation over images", "spread"], rows)
    if fold is not None:
        _fold_gates(trained, report, fold, dataset, out)


def _fold_gates(
    trained: Trained, report: dict[str, Any], spread: float, dataset: "Dataset", out: str | None
) -> None:
    """Fold gates of a small spread, show the accuracy before and after, and save the network."""
    from spem.export.network import save_network
    from spem.gates import Gate
    from spem.surgery.deployment import deploy
    from spem.train.folder import new_folder
    from spem.train.metrics import evaluate as measure
    from spem.train.results import network_config

    folded = deploy(trained.model, constant_gates=spread, report=report)
    left = sum(isinstance(module, Gate) for module in folded.modules())
    print(f"folded {len(report) - left} of {len(report)} gates")
    test = trained.batches(dataset.test)
    before, after = measure(trained.model, test), measure(folded, test)
    show(["", "before", "after"], [(key, before[key], after[key]) for key in _MEASURES])
    if out is not None:
        folder = new_folder(Path(out), trained.load_recipe())
        save_network(folder, folded, {**trained.config, **network_config(folded)})
        say(f"run folder: {folder}")


def report(folder: str) -> None:
    """Write the report of a comparison: report.html, report.md and figures/ in its folder.

    The page loads nothing from the internet. An unfinished comparison is reported as far as it got.

    Args:
        folder: of a comparison, with records.jsonl.
    """
    from spem.report.writer import report as write_report

    write_report(folder)


def _recipe(config: str | None, recipe_keys: dict[str, Any]) -> Recipe:
    if config is None:
        config = "digits" if recipe_keys.get("data", "digits") == "digits" else "cifar_quick"
    return load_recipe(config, **recipe_keys)


def _resumed(config: str | None, out: str | None, resume: str | bool) -> tuple[str, str]:
    if config is not None:
        raise ValueError("--resume continues a run with its own recipe: leave out --config")
    if isinstance(resume, str) == bool(out):
        raise ValueError("--resume needs one folder: --resume FOLDER, or --out FOLDER --resume")
    folder = Path(out or str(resume))
    if not (folder / "recipe.yaml").is_file():
        raise not_found(folder, "run to resume", "recipe.yaml")
    return str(folder / "recipe.yaml"), str(folder)
