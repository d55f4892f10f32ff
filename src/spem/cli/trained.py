"""A trained network as the commands use it: on its device, with the data of its run."""

from dataclasses import replace
from typing import TYPE_CHECKING

from spem.models.pretrained import find_run
from spem.train.recipe import Device, Recipe, load_recipe

if TYPE_CHECKING:
    from spem.data import Batches, Dataset, Split


class Trained:
    """The network of a finished run, in eval mode, or one with bundled weights.

    Args:
        run: folder of the run, or the name of a network with bundled weights.
        device: auto, cpu, cuda or mps.

    Attributes:
        model: the network.
        config: the content of its `config.json`.
        device: where it is.
    """

    def __init__(self, run: str, device: Device):
        from spem.export.network import load_network
        from spem.train.devices import create_fabric, keep_freed_memory

        keep_freed_memory()
        self._run, self._folder = run, find_run(run)
        model, self.config = load_network(self._folder)
        self.device = create_fabric(Recipe(device=device)).device
        self.model = model.to(self.device)

    def load_recipe(self) -> Recipe:
        """Return the recipe of the run."""
        return load_recipe(str(self._folder / "recipe.yaml"))

    def load_data(self, data: str | None, data_dir: str | None, download: bool) -> "Dataset":
        """Return a data set, loaded as the run would load it.

        Args:
            data: its name; None: the run's.
            data_dir: the folder with the data; None: the run's.
            download: fetch the data set when it is absent.

        Raises:
            ValueError: it has other classes than those of the network.
        """
        from spem.train.setup import load_data

        recipe = self.load_recipe()
        recipe = replace(
            recipe,
            data=data or recipe.data,
            data_dir=data_dir or recipe.data_dir,
            download=download,
            image_size=self.config["image_size"][0],
        )
        dataset = load_data(recipe)
        if list(dataset.classes) != self.config["classes"]:
            raise ValueError(
                f"{self._run} was trained for other classes than those of {dataset.name}"
            )
        return dataset

    def batches(self, split: "Split") -> "Batches":
        """Return a split's batches, normalised for the network, on its device."""
        from spem.data.batches import EVALUATION_BATCH, Batches

        mean, std = self.config["mean"], self.config["std"]
        return Batches(split, EVALUATION_BATCH, mean=mean, std=std, device=self.device)
