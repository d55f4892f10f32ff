"""Recipes by name or from files."""

from dataclasses import fields
from importlib import resources
from typing import Any

from spem._messages import unknown
from spem._yaml import read_yaml, shipped_names
from spem.train.recipe import NAMED_DATA, Recipe

_RECIPES = resources.files("spem.train") / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    return shipped_names(_RECIPES)


def load_recipe(name_or_path: str, **overrides: Any) -> Recipe:
    """Return a bundled recipe, or one read from a YAML file, with some keys replaced.

    The text "none" stands for None. A `gate` that replaces another one starts without the
    other's `gate_options`, `placement` and `mask`; a folder of images that replaces other data,
    without their `mean` and `std`; and `weights` that are given take the place of pretrained ones.

    Args:
        name_or_path: one of `recipe_names()`, or a file whose keys are fields of `Recipe`.
        **overrides: values that replace those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown recipe or key, a value that is not allowed, or no valid YAML.
    """
    settings = read_yaml(name_or_path, "recipe", _RECIPES)
    if overrides.get("gate", settings.get("gate")) != settings.get("gate"):
        settings |= {"gate_options": {}, "placement": None, "mask": None}
    data = overrides.get("data", settings.get("data"))
    if data != settings.get("data") and data not in NAMED_DATA:
        settings |= {"mean": None, "std": None}
    if overrides.get("weights") not in (None, "none"):
        settings |= {"pretrained": False}
    settings |= overrides
    # Python has the word `import` for itself.
    known = {f.name.rstrip("_"): f.name for f in fields(Recipe)}
    for key in settings:
        if key not in known:
            raise unknown("recipe key", key, known)
    values: dict[str, Any] = {known[k]: None if v == "none" else v for k, v in settings.items()}
    return Recipe(**values)
