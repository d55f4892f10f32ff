"""Put finished runs among the bundled networks.

    python benchmarks/publish_weights.py RUN [RUN ...]

Each becomes the folder MODEL-GATE-DATA of `src/spem/models/weights`, with a model card that is
written from the run's own files; it replaces an earlier one of that name.
"""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from spem._files import write_text
from spem._messages import unknown
from spem.data import cifar
from spem.export.network import load_network
from spem.models import create_model
from spem.models.pretrained import FOLDER, bundled_name
from spem.surgery.config import config_of
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe

LIMIT = 2_000_000
CARD = "model_card.md.jinja"
DIGITS = (
    "1,797 handwritten digits of 8×8 grey pixels: the copy of the test set of UCI's *Optical"
    " Recognition of Handwritten Digits* that scikit-learn ships."
)
KRIZHEVSKY = (
    "labelled subsets of the *80 million tiny images*, which their authors have withdrawn since."
    " CIFAR's own page names no licence; it asks whoever uses the images to cite Alex Krizhevsky,"
    " *Learning Multiple Layers of Features from Tiny Images*, 2009."
)


def publish(run: Path, root: Path = FOLDER) -> Path:
    """Copy what is needed of a run into the folder of its name, and write the model card there.

    Args:
        run: folder of a finished run.
        root: folder that holds those of the trained networks.

    Returns:
        The folder of the network.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: a file is damaged or too large, or nobody else could repeat the run.
    """
    config = load_network(run)[1]
    if not (run / "summary.json").is_file():
        raise FileNotFoundError(f"{run} holds no finished run: summary.json is missing")
    size = (run / "model.safetensors").stat().st_size
    if size > LIMIT:
        raise ValueError(f"the weights of {run} have {size:,} bytes, at most {LIMIT:,} are allowed")
    recipe = public_recipe(run)
    name = bundled_name(config["model"], config["gate"], recipe.data)
    card = render(name, config, recipe, run)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors", "summary.json"):
        shutil.copyfile(run / file, folder / file)
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_text(folder / "README.md", card)
    return folder


def public_recipe(run: Path) -> Recipe:
    """Return the recipe of a run without what only its machine has."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    if recipe.weights is not None:
        raise ValueError(f"{run} started from {recipe.weights}, without which none can repeat it")
    default = Recipe()
    return replace(
        recipe,
        data_dir=default.data_dir,
        download=default.download,
        progress=default.progress,
        logger=default.logger,
    )


def render(name: str, config: dict[str, Any], recipe: Recipe, run: Path) -> str:
    """Return the model card."""
    with (run / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    if len(epochs) != recipe.epochs:
        raise ValueError(f"{run} has {len(epochs)} of {recipe.epochs} epochs in metrics.csv")
    summary = json.loads((run / "summary.json").read_text())
    if float(epochs[-1]["test_top1"]) != summary["final_test_top1"]:
        raise ValueError(f"{run}: metrics.csv and summary.json name different accuracies")
    templates = FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    environment = Environment(
        loader=templates, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(CARD).render(
        name=name,
        config=config,
        recipe=recipe,
        summary=summary,
        last=epochs[-1],
        data=describe(recipe.data),
        call=call(config, recipe.data),
    )


def describe(data: str) -> str:
    """Return where the images come from, and what their authors ask."""
    if data == "digits":
        return DIGITS
    if data not in cifar.LAYOUTS:
        raise unknown("data set that everybody has", data, ("digits", *cifar.LAYOUTS))
    layout = cifar.LAYOUTS[data]
    train, test = sum(layout.train.values()), sum(layout.test.values())
    side = f"{cifar.SHAPE[1]}×{cifar.SHAPE[2]}"
    return (
        f"{train:,} training and {test:,} test photographs of {side} pixels in {layout.classes}"
        f" classes. CIFAR-10 and CIFAR-100 are {KRIZHEVSKY}"
    )


def call(config: dict[str, Any], data: str) -> str:
    """Return the call that builds the network with its weights."""
    default = config_of(create_model(config["model"]))
    arguments = {"gate": config["gate"], "pretrained": data} | config["gate_options"]
    for key in ("in_channels", "block", "placement", "mask"):
        if config[key] != getattr(default, key):
            arguments[key] = config[key]
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"spem.create_model({config['model']!r}{given})".replace("'", '"')


if __name__ == "__main__":
    try:
        for folder in sys.argv[1:] or sys.exit(__doc__):
            print(publish(Path(folder)))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
