"""Networks of the user's, by name."""

import re
from collections.abc import Callable

from torch import nn

# Networks that `register_model` has entered; `create_model` knows the families of its own beside.
MODELS: dict[str, Callable[..., nn.Module]] = {}
_FAMILIES = r"(resnet|preresnet|densenet|vgg|attention)\d+"


def register_model(
    name: str,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Return a decorator that enters a function into the networks that `create_model` builds.

    The function is called with the keywords `num_classes` and `in_channels` and returns a network
    from images (N, in_channels, H, W) to logits (N, num_classes), without gates: `create_model`
    attaches those, at the place that `placement` names as `at` of `spem.attach` does.

    Args:
        name: the new name.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> @register_model("plain8")
        ... def build(num_classes, in_channels):
        ...     pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        ...     return nn.Sequential(nn.Conv2d(in_channels, 8, 3), pool, nn.Linear(8, num_classes))
        >>> MODELS.pop("plain8")(num_classes=2, in_channels=3)[2]
        Linear(in_features=8, out_features=2, bias=True)
    """
    if name in MODELS or re.fullmatch(_FAMILIES, name):
        raise ValueError(f"the model name {name!r} is taken")

    def enter(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        MODELS[name] = build
        return build

    return enter
