"""What a recipe leaves open: its data, its machine, its network fill it in."""

from dataclasses import replace
from typing import Any

from torch import nn

from spem._messages import say
from spem.data.dataset import image_format
from spem.gates import GATES, gate_options
from spem.models.libraries import is_library_name
from spem.models.preprocessing import Preprocessing, library_preprocessing, stored_preprocessing
from spem.models.registry import PREPROCESSING
from spem.models.user_files import import_files, pin_files
from spem.train.devices import choose_precision
from spem.train.recipe import NAMED_DATA, Recipe
from spem.train.results import MODEL_KEYS, network_config


def resolve(recipe: Recipe, model: nn.Module | None = None) -> Recipe:
    """Return the recipe with the keys filled in that its data, machine and a given model decide.

    The files of its key `import` are run, for they may register its gate.
    """
    import_files(recipe.import_)
    config = None if model is None else network_config(model)
    recipe = replace(
        _fill_images(recipe, model),
        import_=pin_files(recipe.import_),
        precision=choose_precision(recipe),
    )
    if model is None or config is None:
        at = None if recipe.gate is None else recipe.at  # of the gates that there are
        return replace(recipe, gate_options=start_options(recipe), at=at)
    if recipe.replicas > 1:
        raise ValueError(
            f"replicas is {recipe.replicas}, must be 1 for a given model, which is one network"
        )
    for key in ("dropout", "drop_path"):
        if (asked := getattr(recipe, key)) not in (None, config.get(key)):
            raise ValueError(
                f"{key} is {asked}, but a given model has what it was built with: leave {key} out,"
                " or give it to create_model"
            )
    name = config["model"] or type(model).__name__
    if recipe.pretrained:
        say("pretrained is left out: a given network starts from the weights that it has")
    own = {key: config.get(key) for key in MODEL_KEYS} | {"model": name, "pretrained": False}
    return replace(recipe, **own)


def _fill_images(recipe: Recipe, model: nn.Module | None) -> Recipe:
    """Return the recipe with what its network and its data say of images, where it is open.

    Args:
        recipe: as it was given.
        model: the network, if one is given.
    """
    named = recipe.data in NAMED_DATA
    channels, side = image_format(recipe.data)
    decided: dict[str, Any] = {"image_size": side}
    if named:  # those of a folder are measured when it is read
        decided |= {"mean": [0.5] * channels, "std": [0.5] * channels}
    # Data sets that are no folders have images of one size.
    keys = ("mean", "std") if named else Preprocessing._fields
    if any(getattr(recipe, key) is None for key in keys):
        own = _find_preprocessing(recipe, model).for_channels(channels)
        decided |= {key: value for key in keys if (value := getattr(own, key)) is not None}
    return replace(recipe, **{k: v for k, v in decided.items() if getattr(recipe, k) is None})


def _find_preprocessing(recipe: Recipe, model: nn.Module | None) -> Preprocessing:
    """Return how the pictures for a network are prepared, as far as it or its name says."""
    name = recipe.model if model is None else network_config(model)["model"]
    if model is not None and name is None:
        return stored_preprocessing(model)
    if is_library_name(name):
        try:
            return library_preprocessing(name)
        except ImportError:  # which building the network will say
            return Preprocessing()
    return PREPROCESSING.get(name, Preprocessing())


def start_options(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's `gate_options`, with its `init` where that is not the gate's own already.

    The authors' start is left out, as it was before recipes could name a start: so a run has the
    same options, and a comparison the same keys, as ever.
    """
    options, gate = recipe.gate_options, recipe.gate
    trained = recipe.pretrained or recipe.weights is not None
    usual = "identity" if trained and is_library_name(recipe.model) else "paper"
    init = recipe.init or usual
    if init == "paper" or gate not in GATES or "init" not in gate_options(gate):
        return options
    return {"init": init} | options
