"""`batch_size: auto`: the largest batch whose training step fits into memory."""

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from spem.data.splits import Dataset
from spem.data.stream import Pictures
from spem.train.devices import create_fabric
from spem.train.optimizer import create_optimizer
from spem.train.recipe import Recipe
from spem.train.recipe_files import load_recipe
from spem.train.step import create_step

# Larger batches make an epoch no faster, and need other recipes.
_MOST = 1024
# An epoch has at least so many steps.
_STEPS = 8
# Of a GPU's memory; of what a process on the CPU may still use, for the gradients of feature maps
# and whatever else the machine does take their share.
_SHARE_OF_GPU, _SHARE_OF_CPU = 0.9, 0.5


def fill_batch_size(
    recipe: Recipe, model: nn.Module, dataset: Dataset, resumed: Path | None = None
) -> Recipe:
    """Return a recipe with a number in the place of `batch_size: auto`, a power of two.

    On a GPU steps are tried; on the CPU it is estimated from what one step keeps for its backward
    pass, and at most half of the memory that the process may still use is taken.

    Args:
        recipe: as `resolve` returns it.
        model: of the recipe, which stays as it is.
        dataset: of the recipe.
        resumed: the folder of the run that is continued, whose number is taken instead.

    Raises:
        ValueError: not even a batch of two fits.
    """
    if resumed is not None:
        return replace(recipe, batch_size=load_recipe(str(resumed / "recipe.yaml")).batch_size)
    most = max(2, min(_MOST, len(dataset.train.labels) // _STEPS))
    sizes = [2**power for power in range(1, most.bit_length()) if 2**power <= most]
    images = dataset.train.images
    device = create_fabric(replace(recipe, batch_size=2)).device
    if device.type == "cuda":
        found = largest(sizes, lambda size: _fits_gpu(recipe, model, images, size))
    else:
        room = _SHARE_OF_CPU * free_memory() / step_bytes(recipe, model, images)
        found = largest(sizes, lambda size: size <= room)
    if found is None:
        raise ValueError(
            "batch_size is auto, but no batch of 2 images fits into memory: give a smaller"
            " image_size or network"
        )
    return replace(recipe, batch_size=found)


def largest(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """Return the last of ascending sizes up to which all fit; None if the first does not."""
    found = None
    for size in sizes:
        if not fits(size):
            break
        found = size
    return found


def _fits_gpu(recipe: Recipe, model: nn.Module, images: Tensor | Pictures, size: int) -> bool:
    """Return whether two steps on a batch of a size leave some of the GPU's memory free."""
    device = create_fabric(replace(recipe, batch_size=size)).device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _take_steps(recipe, model, images, size, steps=2)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) <= _SHARE_OF_GPU * total


def step_bytes(recipe: Recipe, model: nn.Module, images: Tensor | Pictures) -> float:
    """Return the bytes that a training step keeps for its backward pass, for each image."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _take_steps(recipe, model, images, size=2, steps=1)
    return sum(kept.values()) / 2


def _take_steps(
    recipe: Recipe, model: nn.Module, images: Tensor | Pictures, size: int, steps: int
) -> None:
    """Take training steps on a copy of a network, on a batch of noise."""
    recipe = replace(recipe, batch_size=size, compile=False)
    fabric, twin = create_fabric(recipe), deepcopy(model).train()
    if recipe.channels_last:
        twin.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    take_step = create_step(fabric, recipe, twin, create_optimizer(twin, recipe))
    labels = torch.zeros(size, dtype=torch.int64, device=fabric.device)
    with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
        pixels = torch.randn(size, *images.shape[1:], device=fabric.device)
        for _ in range(steps):
            take_step(pixels, labels, size)


def free_memory() -> int:
    """Return the bytes of main memory that this process may still use."""
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):  # with what caches would give back
            free = int(line.split()[1]) * 1024
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():  # a container's
        free = min(free, int(limit) - int(used))
    return max(0, free)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
