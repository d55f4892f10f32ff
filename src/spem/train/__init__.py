"""One training run: a recipe goes in, the folder of the run comes out.

`load_recipe` reads a recipe, `fit` trains it. A run that was stopped or killed continues from the
state of its last epoch or later, and gives the same weights as one that was not.
"""

from typing import TYPE_CHECKING, Any

from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe, recipe_names

if TYPE_CHECKING:
    from spem.train.fitting import Interrupted, Result, fit

__all__ = ["Interrupted", "Recipe", "Result", "fit", "load_recipe", "recipe_names"]


def __getattr__(name: str) -> Any:
    # What trains is imported at its first use: it takes seconds, which `spem --help` should not.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spem.train import fitting

    return getattr(fitting, name)
