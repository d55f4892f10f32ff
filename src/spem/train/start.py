"""The weights from which a run starts: a library's, or those of a file."""

from torch import nn

from spem.export.weights import start_from
from spem.gates import GATES
from spem.gates import gate_options as known_options
from spem.models.libraries import is_library_name, load_library_weights
from spem.train.recipe import Recipe


def load_start(model: nn.Module, recipe: Recipe) -> list[str]:
    """Load the weights from which a recipe starts, if it names any.

    Args:
        model: of the recipe, changed in place.
        recipe: as `resolve` returns it.

    Returns:
        A sentence for each part that starts otherwise than stored, and one about the gates.
    """
    if recipe.pretrained:
        if not is_library_name(recipe.model):
            raise ValueError(
                f"pretrained is for networks of other libraries, not for {recipe.model}: name a"
                " bundled network or a file as weights"
            )
        source = f"the pretrained weights of {recipe.model}"
        started = load_library_weights(model, recipe.model)
    elif recipe.weights is not None:
        source, started = recipe.weights, start_from(model, recipe.weights)
    else:
        return []
    starts = "init" in known_options(recipe.gate) if recipe.gate in GATES else False
    if started.gates or not starts:
        return started.said
    options = {"init": "paper"} | recipe.gate_options
    if recipe.init is None and options["init"] == "paper" and "init" not in recipe.gate_options:
        raise ValueError(
            f"there are no gates in {source}: give init identity, with which they leave the outputs"
            " of the network as they are, or init paper, as their authors start them"
        )
    way = "as the identity" if options["init"] == "identity" else "as their authors start them"
    return [*started.said, f"the gates start {way}: there are none in {source}"]
