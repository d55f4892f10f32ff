"""Which values of a recipe's keys exclude each other."""

from typing import TYPE_CHECKING

from spem._messages import shorten
from spem._schema import check_fold

if TYPE_CHECKING:
    from spem.train.recipe import Recipe


def check_together(recipe: "Recipe") -> None:
    """Raise ValueError, naming a key and what it must be, where keys of a recipe do not fit.

    Args:
        recipe: whose keys are allowed each for itself.
    """
    check_fold(recipe.fold, recipe.folds)
    batch, graph, several = recipe.batch_size, recipe.cuda_graph, recipe.devices > 1
    scaled, momentum = recipe.precision == "16-mixed", recipe.momentum
    nesterov = recipe.nesterov and recipe.optimizer != "adamw"
    trained_twice = recipe.pretrained and recipe.weights is not None
    thaws = recipe.freeze_epochs is not None
    for wrong, key, allowed in (
        (batch == "auto" and recipe.accumulate > 1, "accumulate", "1 with batch_size auto"),
        (batch == "auto" and several, "devices", "1 with batch_size auto"),
        (batch == "auto" and recipe.replicas > 1, "replicas", "1 with batch_size auto"),
        (batch == "auto" and graph, "cuda_graph", "false with batch_size auto"),
        (
            batch != "auto" and recipe.accumulate > batch,
            "accumulate",
            f"at most batch_size ({batch})",
        ),
        (recipe.resized_crop and recipe.loader == "memory", "loader", "stream with resized_crop"),
        (recipe.resized_crop and recipe.crop, "crop", "0 with resized_crop"),
        (nesterov and momentum == 0, "momentum", "above 0 with nesterov"),
        (graph and several, "devices", "1 with cuda_graph"),
        (recipe.replicas > 1 and several, "devices", "1 with replicas"),
        (recipe.seed + recipe.replicas > 2**32, "seed", "below 2^32 in all replicas"),
        (trained_twice, "pretrained", "false with weights"),
        (graph and recipe.device in ("cpu", "mps"), "device", "auto or cuda with cuda_graph"),
        (graph and recipe.on_nonfinite == "skip", "on_nonfinite", "stop with cuda_graph"),
        # Scaling the loss waits for the device at every step.
        (graph and scaled, "precision", "32 or bf16-mixed with cuda_graph"),
        (thaws and recipe.freeze is None, "freeze_epochs", "none without freeze"),
        # What is frozen when processes are connected or a graph is recorded gets no gradient there.
        (thaws and several, "devices", "1 with freeze_epochs"),
        (thaws and graph, "freeze_epochs", "none with cuda_graph"),
        # Only SGD reads its rate from the device here.
        (graph and recipe.optimizer != "sgd", "optimizer", "sgd with cuda_graph"),
    ):
        if wrong:
            raise ValueError(f"{key} must be {allowed}, got {shorten(getattr(recipe, key))}")
