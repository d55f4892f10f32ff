"""Does an explanation hold? Insertion, deletion and randomised weights put a number to it."""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad
from torch.nn.modules.batchnorm import _BatchNorm

from spem._checks import check_module, check_whole
from spem.explain.cam import compute_cams
from spem.explain.untouched import in_evaluation, read_logits
from spem.functional import check_map

_BLUR = 8  # the blurred image has a Gaussian's σ of the shorter side over this
STEPS = 20


class CamChecks(NamedTuple):
    """How the class activation maps of some images do in three checks.

    Curves are (N, steps + 1): the probability of the class after no pixel, …, after all pixels.

    Attributes:
        classes: (N,), of which each map speaks.
        deletion: as pixels get the mean colour, those of the largest values of the map first.
        insertion: as pixels of the image replace those of a blurred one, in the same order.
        random_deletion, random_insertion: the same with a map of the same size drawn at random. It
            is enlarged, too: single pixels at random would spoil an image more than any region.
        similarity: (N,), rank correlation of the map and that of the network with shuffled weights.
    """

    classes: Tensor
    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor
    similarity: Tensor


def check_cams(
    model: nn.Module,
    images: Tensor,
    *,
    method: str = "gradcam",
    classes: int | Tensor | None = None,
    layer: str | None = None,
    shuffled: nn.Module | None = None,
    steps: int = STEPS,
    seed: int = 0,
) -> CamChecks:
    """Check whether class activation maps show what the network's answer depends on.

    A map that shows it makes the probability of the class fall early as its pixels are deleted, and
    rise early as they are inserted; and it depends on the weights: a network with other weights has
    another map.

    Args:
        model: a classifier of images; it is left as it was.
        images: (N, C, H, W), normalised, on the model's device.
        method: see `compute_cams`.
        classes: see `compute_cams`.
        layer: see `compute_cams`.
        shuffled: of `shuffle_weights`; None to make it of these images.
        steps: equal parts in which the pixels are deleted and inserted.
        seed: of the random map, of equal values of a map, and of the shuffled weights.

    Raises:
        ValueError: see `compute_cams`; or `steps` or `seed` is out of range.

    Source: Petsiuk et al., "RISE", BMVC 2018, section 4.1, with a blur in proportion to the image;
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, with weights that are
        shuffled within each parameter instead of drawn anew.
    """
    check_whole("steps", steps)
    check_whole("seed", seed, least=0)
    found = compute_cams(model, images, method=method, classes=classes, layer=layer)
    other = shuffle_weights(model, images, seed=seed) if shuffled is None else shuffled
    options = {"method": method, "classes": found.classes, "layer": found.layer}
    similarity = _correlate_ranks(found.maps, compute_cams(other, images, **options).maps)
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(found.maps.shape, generator=generator)
    orders = [_rank(each.cpu(), images, generator) for each in (found.maps, chance)]
    with torch.inference_mode(), in_evaluation(model, images.device):
        curves = [
            torch.stack(
                [
                    _measure(model, torch.where(places < step / steps, near, far), found.classes)
                    for step in range(steps + 1)
                ],
                dim=1,
            )
            for places in orders
            for near, far in ((torch.zeros_like(images), images), (images, blur(images)))
        ]
    deletion, insertion, random_deletion, random_insertion = curves
    return CamChecks(
        found.classes, deletion, insertion, random_deletion, random_insertion, similarity
    )


def area(curves: Tensor) -> Tensor:
    """Return the area under each of several curves over [0, 1], (N, steps + 1) to (N,)."""
    return torch.trapezoid(curves.double(), dx=1 / (curves.shape[1] - 1), dim=1)


def shuffle_weights(model: nn.Module, images: Tensor, *, seed: int = 0) -> nn.Module:
    """Return a copy of a network in which the values of each parameter have changed places.

    The running statistics of its batch norms are those of the images: the old ones would let the
    feature maps explode or vanish.

    Args:
        model: the network.
        images: (N, C, H, W), normalised, on the model's device.
        seed: of the order.
    """
    check_module(model)
    check_map("images", images)
    generator = torch.Generator().manual_seed(seed)
    other = deepcopy(model).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
        norms = [m for m in other.modules() if isinstance(m, _BatchNorm)]
        kept = [(norm, norm.momentum) for norm in norms if norm.track_running_stats]
        for norm, _ in kept:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.training = True
        if kept:
            # One image may have one position in some feature map: no variance.
            other(images if len(images) > 1 else images.repeat(2, 1, 1, 1))
        for norm, momentum in kept:
            norm.momentum = momentum
    return other.eval()


def blur(images: Tensor) -> Tensor:
    """Return images blurred by a Gaussian whose σ is an eighth of the shorter side."""
    sigma = min(images.shape[2:]) / _BLUR
    radius = min(round(3 * sigma), min(images.shape[2:]) - 1)
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = (-places.square() / (2 * sigma**2)).exp()
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1)
    channels = images.shape[1]
    wide = pad(images, (radius,) * 4, mode="reflect")
    return conv2d(conv2d(wide, weights, groups=channels), weights.mT, groups=channels)


def _rank(maps: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each pixel the share of pixels of larger values of a map, which is enlarged.

    Pixels of equal values stand in an order drawn at random. (N, 1, H, W).
    """
    values = interpolate(maps[:, None], images.shape[2:], mode="bilinear").flatten(1)
    count, pixels = values.shape
    order = torch.stack([torch.randperm(pixels, generator=generator) for _ in range(count)])
    sorting = values.gather(1, order).argsort(dim=1, descending=True, stable=True)
    shares = (torch.arange(pixels) / pixels).expand(count, -1)
    places = torch.empty(count, pixels).scatter_(1, order.gather(1, sorting), shares)
    return places.view(count, 1, *images.shape[2:]).to(images.device)


def _measure(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return the probability of each image's class, (N,), on the CPU."""
    logits = read_logits(model(images)).float()
    return logits.softmax(1).gather(1, classes[:, None])[:, 0].cpu()


def _correlate_ranks(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's correlation of the values of each pair of maps, (N,); 0 of a flat map."""
    ranks = [torch.stack([*map(_rank_values, m.cpu().flatten(1))]) for m in (first, second)]
    ranks = [each - each.mean(1, keepdim=True) for each in ranks]
    products, squares = (ranks[0] * ranks[1]).sum(1), [r.square().sum(1) for r in ranks]
    below = (squares[0] * squares[1]).sqrt()
    return torch.where(below > 0, products / below.clamp(min=1e-300), 0).float()


def _rank_values(values: Tensor) -> Tensor:
    """Return the rank of each value, equal ones sharing the mean of theirs, float64."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2.0).double()[inverse]
