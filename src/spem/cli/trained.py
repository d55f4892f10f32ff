"""A trained network as the commands use it: on its device, with the data of its run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spem.train.keys import Device
from spem.train.recipe import NAMED_DATA, Recipe
from spem.train.recipe_files import load_recipe

if TYPE_CHECKING:
    from spem.data import Batches, Dataset, Split


class Trained:
    """The network of a finished run, in eval mode, or one with bundled weights, and its data.

    Args:
        run: folder of the run that trained it, or the name of a network with bundled weights:
            resnet20-eca-cifar10, resnet20-spem-cifar10 or resnet20-spem-cifar100.
        data: digits, cifar10, cifar100, or the path of an image folder; if not given: the run's.
        data_dir: folder below which the data sets lie; if not given: the run's.
        download: fetch the data set when it is absent.
        device: auto, cpu, cuda or mps.

    Attributes:
        model: the network.
        config: the content of its `config.json`.
        name: of the run, as it was given.
    """

    def __init__(
        self,
        run: str,
        *,
        data: str | None = None,
        data_dir: str | None = None,
        download: bool = False,
        device: Device = "auto",
    ):
        from spem.export.network import load_network
        from spem.models.pretrained import find_run
        from spem.train.devices import create_fabric

        self.name, self._folder = run, find_run(run)
        self._data, self._download = {"data": data, "data_dir": data_dir}, download
        self._options: dict[str, Any] = {**self._data, "download": download, "device": device}
        model, self.config = load_network(self._folder)
        self.device = create_fabric(Recipe(device=device)).device  # that of the model
        self.model = model.to(self.device)

    def load_other(self, run: str) -> "Trained":
        """Return another network, with the same data set, if one was given, on the same device."""
        return Trained(run, **self._options)

    def load_recipe(self) -> Recipe:
        """Return the recipe of the run."""
        return load_recipe(str(self._folder / "recipe.yaml"))

    def load_data(self) -> "Dataset":
        """Return the data set, loaded as the run would load it.

        Raises:
            ValueError: it has other classes than those of the network.
        """
        from spem.data.cache import CACHE
        from spem.models.pretrained import FOLDER
        from spem.train.setup import load_data

        given: dict[str, Any] = {k: v for k, v in self._data.items() if v is not None}
        if given.get("data") in NAMED_DATA:  # whose images are not cut as those of a folder
            given |= {"interpolation": None, "crop_ratio": None}
        own = {"download": self._download, "image_size": self.config["image_size"][0]}
        # Bundled networks lie in the package, where nothing is kept.
        cache = None if FOLDER in self._folder.parents else self._folder.parent / CACHE
        dataset = load_data(replace(self.load_recipe(), **own, **given), cache=cache)
        if list(dataset.classes) != self.config["classes"]:
            raise ValueError(
                f"{self.name} was trained for other classes than those of {dataset.name}"
            )
        return dataset

    def batches(self, split: "Split") -> "Batches":
        """Return a split's batches, normalised for the network, on its device."""
        from spem.data.batches import Batches

        return Batches(split, mean=self.config["mean"], std=self.config["std"], device=self.device)


class TrainedRuns:
    """Several trained networks, each loaded when its turn comes; see `Trained`.

    Args:
        runs: folders of runs, or names of networks with bundled weights: resnet20-eca-cifar10,
            resnet20-spem-cifar10 or resnet20-spem-cifar100.
        data: digits, cifar10, cifar100, or the path of an image folder; if not given: each run's.
        data_dir: folder below which the data sets lie; if not given: each run's.
        download: fetch the data set when it is absent.
        device: auto, cpu, cuda or mps.
    """

    def __init__(
        self,
        runs: list[str],
        *,
        data: str | None = None,
        data_dir: str | None = None,
        download: bool = False,
        device: Device = "auto",
    ):
        from spem.models.pretrained import find_run

        self._folders = {run: find_run(run) for run in runs}
        self._options: dict[str, Any] = {"data": data, "data_dir": data_dir}
        self._options |= {"download": download, "device": device}

    def __iter__(self) -> Iterator[Trained]:
        for run in self._folders:
            yield Trained(run, **self._options)

    def choose_folders(self, out: str | None) -> dict[str, Path | None]:
        """Return the folder for the files of each run, by the run's name.

        Args:
            out: the folder of a single run's, or with one folder per run; None: that of the run,
                and None for a bundled network, which has no folder of its own.

        Raises:
            ValueError: two runs would have the same folder.
        """
        from spem.models.pretrained import FOLDER

        if out is None:
            own = self._folders.items()
            return {run: None if FOLDER in path.parents else path for run, path in own}
        if len(self._folders) == 1:
            return dict.fromkeys(self._folders, Path(out))
        folders: dict[str, Path | None] = {
            run: Path(out, run.strip("./").replace("/", "-")) for run in self._folders
        }
        if len({*folders.values()}) < len(folders):
            runs = ", ".join(folders)
            raise ValueError(f"out has one folder per run, named as the run, but {runs} share one")
        return folders
