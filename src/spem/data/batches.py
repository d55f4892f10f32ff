"""Batches of a split: kept on the device as bytes, augmented and normalised there."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spem._checks import check_device, check_share, check_switch, check_whole, is_number
from spem._extras import needs_extra
from spem._messages import shorten
from spem._schema import Area, check_value
from spem.data.color_jitter import ColorJitter
from spem.data.erasing import RandomErasing
from spem.data.resized_crop import ResizedCrop
from spem.data.stream import Pictures, Stream
from spem.data.trivial import TrivialAugment

# At most so many images and positions of a batch for evaluation: at 224 px 83 images, of which a
# ResNet-50 has feature maps of 270 MB, and not of 3 GB.
_IMAGES, _POSITIONS = 1000, 2**22


class Split(NamedTuple):
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,).

    `Pictures` stay in their files, and are decoded when they are needed.
    """

    images: Tensor | Pictures
    labels: Tensor

    def __repr__(self) -> str:
        """Return the number and size of the images; what the tensors hold is long."""
        return f"Split of {len(self.labels):,} images {'×'.join(map(str, self.images.shape[1:]))}"


class Batches:
    """A split on a device, and the batches that are made of it there.

    With several processes, each gets its contiguous share of every batch. Shares differ by at most
    one image, and may be empty in a last batch with fewer images than processes, so all processes
    take the same number of steps.

    Args:
        split: the images and labels.
        batch_size: images of a step, over all processes; the last step may have fewer. None:
            as many as evaluation takes, 1,000 up to 64 px and fewer of larger images.
        mean, std: one value for each channel, of pixels in [0, 1]; None for 0.5.
        crop: zero padding, in pixels, around training images, from which a window of the original
            size is cut at random; 0: no crop.
        flip: mirror training images, each with probability 1/2.
        color_jitter: change brightness, contrast and saturation of each training image, in this
            order, by factors drawn evenly from 1 − c to 1 + c.
        trivial_augment: change each training image as `TrivialAugment` does.
        random_erasing: probability of a rectangle of noise in a training image, as
            `RandomErasing` draws it.
        resized_crop: smallest and largest share of a picture of which `ResizedCrop` makes a
            training image; None: the whole picture. For `Pictures` alone.
        device: where the split is kept and the batches are made.
        channels_last: memory format of the batches.
        rank, world_size: this process's number, from 0, and the number of processes.

    Raises:
        ValueError: a size is out of range, or `mean` or `std` do not fit the channels.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: int = 0,
        flip: bool = False,
        color_jitter: float = 0.0,
        trivial_augment: bool = False,
        random_erasing: float = 0.0,
        resized_crop: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        _check_split(split)
        if batch_size is None:
            batch_size = max(1, min(_IMAGES, _POSITIONS // math.prod(split.images.shape[2:])))
        check_whole("batch_size", batch_size)
        check_device("device", device)
        check_switch("flip", flip)
        check_share("color_jitter", color_jitter)
        check_switch("trivial_augment", trivial_augment)
        check_share("random_erasing", random_erasing)
        check_switch("channels_last", channels_last)
        check_whole("world_size", world_size)
        check_whole("rank", rank, least=0, most=world_size - 1)
        self._labels = split.labels.to(device)
        self.device = self._labels.device
        self._mean, self._std = _statistics(mean, std, split.images.shape[1], self.device)
        self._batch_size = batch_size
        self._images, self._resized_crop = split.images, None
        if isinstance(split.images, Tensor):
            self._images = split.images.to(device)
        if resized_crop is not None:
            self._resized_crop = _resized_crop(resized_crop, crop, flip, split.images)
            flip = False
        self._augment = _augmentation(crop, flip, split.images.shape[-2:])
        if color_jitter:
            self._augment.append(ColorJitter(color_jitter))
        if trivial_augment:
            self._augment.append(TrivialAugment())
        if random_erasing:
            self._augment.append(RandomErasing(random_erasing))
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return math.ceil(len(self._labels) / self._batch_size)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, float32 (N, C, H, W), and labels in the order of the split, unaugmented."""
        shares = self._shares(torch.arange(len(self._labels)))
        for images, labels in self._read(shares):
            yield self._standardise(_scale(images)), labels

    def shuffled(
        self, order: Tensor, start: int = 0, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield augmented images, float32 (N, C, H, W), and labels.

        The augmentation of a batch draws from torch's global CPU generator when the batch is taken,
        but for `resized_crop` and then `flip`, which follow from the seed and an image's row.

        Args:
            order: row numbers of the split in the order of the epoch, (N,).
            start: the first step, counted from 0.
            seed: of the epoch.
        """
        for images, labels in self._read(self._shares(order)[start:], seed, self._resized_crop):
            yield self._standardise(self._augment(_scale(images))), labels

    def _read(
        self, shares: Sequence[Tensor], seed: int = 0, crop: ResizedCrop | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images, uint8 (n, C, H, W), and the labels of each share."""
        if isinstance(self._images, Tensor):
            for rows in shares:
                yield self._images[rows], self._labels[rows]
            return
        pinned = self.device.type == "cuda"
        coming = Stream(self._images, crop, pinned).read(shares, seed)
        for rows, (images, replaced) in zip(shares, coming, strict=True):
            rows = rows.clone()
            for each in replaced:
                rows[each.place] = each.by
            yield images.to(self.device, non_blocking=pinned), self._labels[rows]

    def _shares(self, order: Tensor) -> list[Tensor]:
        """Return the row numbers of this process's share of each step."""
        steps = order.to(self._labels.device).split(self._batch_size)
        return [rows.tensor_split(self._world_size)[self._rank] for rows in steps]

    def _standardise(self, pixels: Tensor) -> Tensor:
        rows, (mean, std) = pixels, (self._mean, self._std)
        if pixels.is_contiguous(memory_format=torch.channels_last):
            # Three times as fast as with a mean and a std for each of three neighbours in memory.
            rows = pixels.permute(0, 2, 3, 1).flatten(2)
            mean, std = (value.flatten().repeat(pixels.shape[3]) for value in (mean, std))
        rows.sub_(mean).div_(std)
        return pixels.contiguous(memory_format=self._format)


def normalise(
    images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Tensor:
    """Return (pixels − mean) / std, where pixels are the images scaled to [0, 1].

    Args:
        images: uint8, (…, C, H, W).
        mean: one value for each channel; None for 0.5.
        std: the same.

    Returns:
        float32, (…, C, H, W).

    Raises:
        ValueError: `mean` or `std` do not fit the channels.
    """
    mean_, std_ = _statistics(mean, std, images.shape[-3], images.device)
    return _scale(images).sub_(mean_).div_(std_)


def restore_pixels(
    images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Tensor:
    """Return as uint8 the images of which `normalise` made float32, (…, C, H, W)."""
    mean_, std_ = _statistics(mean, std, images.shape[-3], images.device)
    return images.mul(std_).add_(mean_).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def measure_statistics(images: Tensor | Pictures) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, of pixels in [0, 1], to four digits.

    Args:
        images: uint8, (N, C, H, W); of `Pictures`, a thousand are measured.
    """
    if isinstance(images, Pictures):
        images = images.sample()
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        shares = images[:, channel].flatten().bincount(minlength=256).double()
        shares /= shares.sum()
        mean = (shares * levels).sum()
        means.append(round(mean.item(), 4))
        deviation = (shares * (levels - mean).square()).sum().sqrt()
        # Where all pixels are equal, one grey level: something to divide by.
        deviations.append(round(max(deviation.item(), 1 / 255), 4))
    return means, deviations


def _check_split(split: Split) -> None:
    fits = isinstance(split, tuple) and len(split) == 2 and isinstance(split[0], Tensor | Pictures)
    fits = fits and isinstance(split[1], Tensor) and len(split[0].shape) == 4
    if not fits or split[1].shape != split[0].shape[:1]:
        raise ValueError(
            f"split is {shorten(split)}, must be a Split of images (N, C, H, W) and labels (N,)"
        )


def _scale(images: Tensor) -> Tensor:
    return images.float().div_(255)


def _statistics(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return mean and std as (C, 1, 1) on a device."""
    tensors = []
    for name, values in (("mean", mean), ("std", std)):
        values = [0.5] * channels if values is None else values
        if not isinstance(values, list | tuple) or not all(map(is_number, values)):
            raise ValueError(f"{name} is {shorten(values)}, must be a list of numbers")
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} values, the images {channels} channels")
        tensors.append(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))
    if not (tensors[1] > 0).all():
        raise ValueError(f"std is {std}; every value must be positive")
    return tensors[0].to(device), tensors[1].to(device)


def _resized_crop(
    area: Sequence[float], crop: int, flip: bool, images: Tensor | Pictures
) -> ResizedCrop:
    check_value("resized_crop", area, Area)
    if isinstance(images, Tensor) or images.shape[2] != images.shape[3]:
        raise ValueError(
            "resized_crop cuts squares out of whole pictures: it is for a folder that is streamed"
            " (loader: stream)"
        )
    if crop:
        raise ValueError(f"crop is {crop}, must be 0 with resized_crop")
    if images.interpolation not in (None, "bilinear", "bicubic"):
        raise ValueError(
            f"interpolation is {images.interpolation}, must be bilinear or bicubic with"
            " resized_crop"
        )
    return ResizedCrop((area[0], area[1]), flip, images.interpolation)


def _augmentation(crop: int, flip: bool, size: torch.Size) -> nn.Sequential:
    check_whole("crop", crop, least=0, most=max(size))
    steps = nn.Sequential()
    if crop or flip:
        with needs_extra("train"):
            from kornia.augmentation import RandomCrop, RandomHorizontalFlip
        if crop:
            steps.append(RandomCrop((size[0], size[1]), padding=crop, cropping_mode="slice"))
        if flip:
            steps.append(RandomHorizontalFlip())
    return steps
