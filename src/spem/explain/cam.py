"""Class activation maps: where a network finds what speaks for a class in an image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spem._checks import check_choice, check_module
from spem._messages import shorten, unknown
from spem.explain.untouched import in_evaluation, read_logits
from spem.functional import check_map


class Cams(NamedTuple):
    """Class activation maps of a batch of images.

    Attributes:
        maps: (N, h, w), float32, at least 0, in the size of the layer's feature map. How large a
            value is means nothing beyond its image.
        classes: (N,), the class of which each map speaks.
        logits: (N, classes).
        layer: the name of the module whose feature map was looked at.
    """

    maps: Tensor
    classes: Tensor
    logits: Tensor
    layer: str


def _grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Weigh each channel by the mean of its gradient."""
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)


def _hires_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Weigh each position of each channel by its own gradient."""
    return (gradient * activation).sum(1)


def _grad_cam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Weigh each channel by its positive gradients G, each with the share α of equation 19.

    The paper takes exp(logit) for the score. Its derivatives of orders 1, 2 and 3 are G, G² and G³
    times exp(logit), a common factor of the map, where no layer above curves: with the sum S of the
    channel, α = G² / (2·G² + S·G³) = 1 / (2 + S·G).
    """
    total = activation.sum((2, 3), keepdim=True)
    weights = (gradient.relu() / (2 + total * gradient)).sum((2, 3), keepdim=True)
    return (weights * activation).sum(1)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _grad_cam,
    "hirescam": _hires_cam,
    "gradcam++": _grad_cam_plus_plus,
}


def compute_cams(
    model: nn.Module,
    images: Tensor,
    *,
    method: str = "gradcam",
    classes: int | Tensor | None = None,
    layer: str | None = None,
) -> Cams:
    """Show where a network finds what speaks for a class in each of some images.

    The network computes in evaluation mode and is left as it was: modes, hooks, gradients and the
    generators of random numbers. Its parameters may be frozen.

    Args:
        model: a classifier of images, with gates or without.
        images: (N, C, H, W), normalised as the network wants them, on its device.
        method: "gradcam", "hirescam" or "gradcam++".
        classes: the class to look for, one or (N,); None for the predicted class of each image.
        layer: name of the module whose feature map is looked at; None for the last one that gives
            a feature map of more than one position. One that runs several times counts as it runs
            last.

    Raises:
        ValueError: the model has no such layer, or gives no logits, or an argument is not allowed.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2; Draelos and Carin, "Use
        HiResCAM instead of Grad-CAM", 2020, equation 4; Chattopadhay et al., "Grad-CAM++", WACV
        2018, equations 10 and 19.

    Example:
        >>> from spem import create_model
        >>> cams = compute_cams(create_model("resnet8", "spem"), torch.randn(2, 3, 32, 32))
        >>> cams.layer, cams.maps.shape
        ('layer3', torch.Size([2, 8, 8]))
    """
    check_module(model)
    check_map("images", images)
    check_choice("method", method, METHODS)
    if not len(images):
        raise ValueError("there are no images to explain")
    with torch.inference_mode(False), torch.enable_grad(), in_evaluation(model, images.device):
        name = find_layer(model, images[:1]) if layer is None else layer
        with _cut_at(model, name) as runs:
            logits = read_logits(model(images))
            if not runs:
                raise ValueError(f"layer {shorten(name)} does not run when the model does")
            chosen, activation = _choose(classes, logits.detach()), runs[-1]
            score = logits.gather(1, chosen[:, None]).sum()
            gradient = _differentiate(score, activation, name)
    activation, gradient = activation.detach().float(), gradient.float()
    maps = METHODS[method](activation, gradient).relu()
    return Cams(maps, chosen, logits.detach().float(), name)


def find_layer(model: nn.Module, images: Tensor) -> str:
    """Return the name of the module that is the last to give a feature map as the model runs.

    A feature map has more than one position: what global pooling returns is none.

    Args:
        model: in evaluation mode.
        images: (N, C, H, W), on its device.

    Raises:
        ValueError: the model has no convolution, or gives no feature map.
    """
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ValueError(f"this {type(model).__name__} has no convolution to explain: name a layer")
    found: list[str] = []

    def note(name: str, output: Any) -> None:
        if _is_map(output):
            found.append(name)

    with torch.no_grad(), _watching(model, note):
        model(images)
    if not found:
        raise ValueError(
            f"no layer of this {type(model).__name__} gives a feature map of more than one position"
            f" for images of {images.shape[2]}×{images.shape[3]} pixels: give larger ones"
        )
    return found[-1]


@contextmanager
def _watching(model: nn.Module, see: Callable[[str, Any], None]) -> Iterator[None]:
    """Call a function with the name and the output of each part of a model that has run."""
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: see(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _cut_at(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Let the graph of gradients begin at the outputs of a layer, which are collected.

    What follows gets copies: an in-place ReLU must not change what is kept.
    """
    modules = {n: module for n, module in model.named_modules() if n}
    if not isinstance(name, str) or name not in modules:
        raise unknown("layer", name, modules)
    runs: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not _is_map(output):
            shape = tuple(output.shape) if isinstance(output, Tensor) else shorten(output)
            raise ValueError(
                f"layer {shorten(name)} gives {shape}, must give a feature map (N, C, H, W) of more"
                " than one position"
            )
        runs.append(output.detach().requires_grad_())
        return runs[-1].clone()

    hook = modules[name].register_forward_hook(cut)
    try:
        yield runs
    finally:
        hook.remove()


def _is_map(output: Any) -> bool:
    """Return whether an output is a feature map of more than one position."""
    known = isinstance(output, Tensor) and output.dim() == 4 and output.is_floating_point()
    return known and output.shape[2] * output.shape[3] > 1


def _choose(classes: int | Tensor | None, logits: Tensor) -> Tensor:
    """Return the class of each image, (N,)."""
    images, count = logits.shape
    if classes is None:
        return logits.argmax(1)
    wanted = f"must be None, a class from 0 to {count - 1}, or one for each of {images} images"
    try:
        chosen = torch.as_tensor(classes, device=logits.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"classes is {shorten(classes)}, {wanted}") from error
    whole = chosen.dtype in (torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8)
    fits = whole and (chosen.dim() == 0 or chosen.shape == (images,))
    if not fits or chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(f"classes is {shorten(classes)}, {wanted}")
    return chosen.long().expand(images)


def _differentiate(score: Tensor, activation: Tensor, layer: str) -> Tensor:
    gradient = None
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(score, activation, allow_unused=True)
    if gradient is None:
        raise ValueError(f"the logits do not depend on what layer {shorten(layer)} gives")
    return gradient
