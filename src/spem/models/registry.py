"""Networks of the user's, by name."""

import inspect
import re
from collections.abc import Callable

from torch import nn

from spem._checks import check_new_name
from spem._messages import shorten
from spem.models.names import USUAL
from spem.models.preprocessing import Preprocessing

# Networks that `register_model` has entered; `create_model` knows the families of its own beside.
MODELS: dict[str, Callable[..., nn.Module]] = {}
# How the pictures for them are prepared, where their files say so.
PREPROCESSING: dict[str, Preprocessing] = {}
_FAMILIES = "|".join({name.rstrip("0123456789") for name in USUAL})


def register_model(
    name: str,
    *,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    image_size: int | None = None,
    interpolation: str | None = None,
    crop_ratio: float | None = None,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Return a decorator that enters a function into the networks that `create_model` builds.

    The function is called with the keywords `num_classes` and `in_channels` and returns a network
    from images (N, in_channels, H, W) to logits (N, num_classes), without gates: `create_model`
    attaches those, at the place that `placement` names as `at` of `spem.attach` does.

    Args:
        name: the new name, of letters, digits, "_", "-", "." and "+".
        mean: subtracted from pixels in [0, 1], one number per channel. This and the following are
            how the network's weights were trained to see pictures: recipes take these values where
            they name none.
        std: divides them afterwards, one number per channel.
        image_size: side of the images, in pixels.
        interpolation: by which pictures are resized: nearest, bilinear, bicubic or lanczos.
        crop_ratio: of that side to the shorter side of the resized picture, out of whose centre the
            image is cut.

    Raises:
        ValueError: the name is taken or not allowed, the function lacks the keywords, or another
            value is not allowed.

    Example:
        >>> @register_model("plain8")
        ... def build(num_classes, in_channels):
        ...     pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        ...     return nn.Sequential(nn.Conv2d(in_channels, 8, 3), pool, nn.Linear(8, num_classes))
        >>> MODELS.pop("plain8")(num_classes=2, in_channels=3)[2]
        Linear(in_features=8, out_features=2, bias=True)
    """
    check_new_name("model", name)
    if name in MODELS or re.fullmatch(rf"({_FAMILIES})\d+", name):
        raise ValueError(f"the model name {shorten(name)} is taken")

    preprocessing = Preprocessing(mean, std, image_size, interpolation, crop_ratio)
    preprocessing.check()

    def enter(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        try:
            inspect.signature(build).bind(num_classes=10, in_channels=3)
        except (TypeError, ValueError) as error:  # a ValueError: it has no signature
            raise ValueError(
                f"{shorten(build)} must take the keywords num_classes and in_channels"
            ) from error
        MODELS[name] = build
        PREPROCESSING[name] = preprocessing
        return build

    return enter
