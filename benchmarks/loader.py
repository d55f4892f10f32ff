"""Images per second of the streamed loader beside torchvision's, on the same JPEGs.

    python benchmarks/loader.py [--rounds 9] [--images 600]

In the environment of the interoperability tests (`make bench-loader`). The baseline is ImageFolder,
DataLoader and transforms v2 as torchvision documents them. First it is checked that the same crops
give the same pixels, to a mean difference below 0.1 levels; then epochs of both alternate.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder  # pyright: ignore[reportMissingImports]
from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

from spem.data import Batches, load_dataset
from spem.data.batches import restore_pixels
from spem.data.resized_crop import ResizedCrop
from spem.train.devices import keep_freed_memory

BATCH = 64
AREA = [0.08, 1.0]
STATISTICS: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def write_pictures(folder: Path, count: int) -> None:
    """Write parts of scikit-learn's two photographs, 500 × 375 pixels each."""
    numbers = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        photograph = photographs[number % 2]
        left, top = int(numbers.integers(100)), int(numbers.integers(27))
        part = photograph.crop((left, top, left + 533, top + 400))
        if number % 4 > 1:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = folder / "train" / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        part.resize((500, 375)).save(place / f"{number}.jpg", quality=95)
    for label in (0, 1):
        (folder / "val" / f"class {label}").mkdir(parents=True)
        part.save(folder / "val" / f"class {label}" / "0.jpg")


def ours(folder: Path, size: int, workers: int) -> Callable[[int], Iterator[Tensor]]:
    dataset = load_dataset(str(folder), image_size=size, loader="stream", workers=workers)
    batches = Batches(
        dataset.train, BATCH, resized_crop=AREA, flip=True, channels_last=True, **STATISTICS
    )

    def epoch(seed: int) -> Iterator[Tensor]:
        order = torch.randperm(len(dataset.train.labels))
        return (images for images, _ in batches.shuffled(order, seed=seed))

    return epoch


def theirs(folder: Path, size: int, workers: int) -> Callable[[int], Iterator[Tensor]]:
    steps = [v2.RandomResizedCrop(size, scale=tuple(AREA)), v2.RandomHorizontalFlip()]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**STATISTICS)]
    dataset = ImageFolder(str(folder / "train"), v2.Compose(steps))
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)
    return lambda seed: (images for images, _ in loader)


def check_pixels(folder: Path, size: int) -> float:
    """Return the mean difference to torchvision of the same crops, in levels of 255.

    Raises:
        SystemExit: it is 0.1 or more.
    """
    dataset = load_dataset(str(folder), image_size=size, loader="stream")
    crop, differences = ResizedCrop((AREA[0], AREA[1]), False, None), []
    batches = Batches(dataset.train, BATCH, resized_crop=AREA, **STATISTICS)
    images, _ = next(batches.shuffled(torch.arange(60), seed=1))
    found = restore_pixels(images, **STATISTICS)
    for row, own in enumerate(found):
        with Image.open(dataset.train.images.files[row]) as image:  # pyright: ignore
            numbers = np.random.Generator(np.random.Philox(key=1, counter=[0, row, 0, 0]))
            box = crop.draw(numbers, image.height, image.width)
            cut = v2.functional.resized_crop(v2.functional.to_image(image), *box, [size, size])
        differences.append((own.float() - cut.float()).abs().mean().item())
    mean = statistics.mean(differences)
    if mean >= 0.1:
        sys.exit(f"the pixels differ from torchvision's by {mean:.3f} levels in the mean")
    return mean


def measure(epoch: Callable[[int], Iterator[Tensor]], seed: int) -> tuple[float, float]:
    """Return the images per second of an epoch, and the CPU milliseconds of an image."""
    before, started, count = _cpu_seconds(), time.perf_counter(), 0
    for images in epoch(seed):
        count += len(images)
    seconds = time.perf_counter() - started
    return count / seconds, 1000 * (_cpu_seconds() - before) / count


def _cpu_seconds() -> float:
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in own)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the streamed loader beside torchvision's.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the commands do; both loaders profit
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, options.images)
        sizes = [path.stat().st_size for path in folder.glob("train/*/*.jpg")]
        print(f"{len(sizes)} JPEGs of 500×375, median {statistics.median(sizes) / 1000:.0f} kB")
        for size in (224, 128):
            print(f"{size} px: mean difference of pixels {check_pixels(folder, size):.4f} levels")
            for workers in (1, 2):
                epochs = [make(folder, size, workers) for make in (ours, theirs)]
                pairs = [[measure(epoch, n) for epoch in epochs] for n in range(options.rounds)]
                ratios = sorted(own[0] / other[0] for own, other in pairs)
                rates, cpu = (
                    [statistics.median(pair[who][kind] for pair in pairs) for who in (0, 1)]
                    for kind in (0, 1)
                )
                print(
                    f"{size} px, {workers} workers: {rates[0]:.0f} and {rates[1]:.0f} images/s,"
                    f" ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f},"
                    f" n = {len(ratios)}), CPU {cpu[0]:.2f} and {cpu[1]:.2f} ms an image"
                )


if __name__ == "__main__":
    main()
