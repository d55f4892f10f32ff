"""The data of the runs of a comparison, loaded once for runs on the same images."""

from pathlib import Path

from spem.compare.planned import PlannedRun
from spem.data.cache import CACHE
from spem.data.splits import Dataset
from spem.train.setup import load_data

# The keys of a recipe on which the images of a run depend.
KEYS_OF_DATA = ("data", "data_dir", "image_size", "validation", "seed", "on_bad_image")
KEYS_OF_DATA += ("interpolation", "crop_ratio", "folds", "fold")
KEYS_OF_DATA += ("loader", "workers", "resized_crop")


class RunData:
    """Loads the data of one run after the other; runs on the same data follow each other.

    Args:
        comparison: the folder, below which decoded images are kept.
    """

    def __init__(self, comparison: Path):
        self._comparison = comparison
        self._loaded: tuple[list[object], Dataset] | None = None

    def load(self, run: PlannedRun) -> Dataset:
        """Return the data of a run: those of the last one, if these are the same.

        Raises:
            ValueError, FileNotFoundError: see `load_dataset`.
        """
        wanted = [getattr(run.recipe, key) for key in KEYS_OF_DATA]
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # before the next is loaded: both may not fit into memory
            cache = cache_beside(run, self._comparison)
            self._loaded = wanted, load_data(run.recipe, cache=cache)
        return self._loaded[1]


def cache_beside(run: PlannedRun, comparison: Path) -> Path:
    """Return the folder of the decoded images of a run of a comparison."""
    return run.folder_in(comparison).parent / CACHE
