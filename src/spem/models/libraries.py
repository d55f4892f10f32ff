"""Networks of timm, torchvision and Hugging Face by name: `timm:resnet18`, `torchvision:resnet18`.

None of these libraries is imported before a name asks for it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeGuard, cast

from torch import Tensor, nn

from spem._messages import shorten, unknown
from spem.models.dropout import NoDropoutError, build_dropping, configure_dropping
from spem.surgery.start import Started, start_from_state

# The library by the prefix of its networks' names.
LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}
# These two otherwise return more than the logits in training.
_AUXILIARY = ("googlenet", "inception_v3")


class Logits(nn.Module):
    """A network of Hugging Face that returns the logits alone.

    Args:
        model: a model of transformers for the classification of images.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        return self.model(x).logits


def is_library_name(name: object) -> TypeGuard[str]:
    """Return whether a name is that of another library's network: it has a colon."""
    return isinstance(name, str) and ":" in name


def library_names(prefix: str) -> list[str]:
    """Return the names of a library's networks, each with its prefix; none of Hugging Face's.

    Args:
        prefix: a key of `LIBRARIES`.
    """
    with _importing(prefix):
        package = import_module(LIBRARIES[prefix])
        if prefix == "timm":
            return [f"timm:{name}" for name in package.list_models()]
        if prefix == "torchvision":
            names = package.models.list_models(module=package.models)
            return [f"torchvision:{name}" for name in names]
        return []


def build_network(
    name: str,
    num_classes: int,
    in_channels: int,
    drops: dict[str, float | None] | None = None,
    library: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a network of another library, with fresh weights.

    Args:
        name: the prefix of the library, a colon, and the library's own name for the network.
        num_classes: width of its classifier.
        in_channels: channels of the images.
        drops: `dropout` and `drop_path`, where they are not to be the library's own.
        library: what `describe_library` returned for such a network; with it a network of Hugging
            Face is built without its hub.

    Raises:
        ValueError: the library or its network is not known, or cannot be built like this.
        ImportError: the library is not installed.
        OSError: the configuration of a network of Hugging Face cannot be fetched.
    """
    prefix, own = split_name(name)
    try:
        if prefix == "hf":
            config = _configure_transformers(own, num_classes, in_channels, library)
            configure_dropping(name, drops or {}, config)
            auto = import_module("transformers").AutoModelForImageClassification
            return Logits(auto.from_config(config))
        if prefix == "timm":
            sizes = {"num_classes": num_classes, "in_chans": in_channels}
            build = partial(import_module("timm").create_model, own, **sizes)
        else:
            build = partial(_build_torchvision, own, num_classes, in_channels)
        return build_dropping(prefix, name, drops or {}, build)
    except NoDropoutError:
        raise
    except OSError as error:
        raise ConnectionError(
            f"the configuration of {name} cannot be fetched: {first_sentence(error)}; where there"
            " is no network, name a folder that holds it: hf:FOLDER"
        ) from error
    except Exception as error:  # of any kind: the library's
        raise ValueError(
            f"{name} cannot be built for {num_classes} classes and {in_channels} channels:"
            f" {first_sentence(error)}"
        ) from error


def describe_library(name: str, model: nn.Module) -> dict[str, Any]:
    """Return which library a network is of, for `config.json`; of Hugging Face's its configuration.

    Args:
        name: see `build_network`.
        model: what it returned.
    """
    package = LIBRARIES[name.partition(":")[0]]
    described: dict[str, Any] = {"name": package, "version": version(package)}
    if isinstance(model, Logits):
        described["config"] = json.loads(
            json.dumps(cast(Any, model.model).config.to_dict(), default=str)
        )
    return described


def load_library_weights(model: nn.Module, name: str) -> Started:
    """Load the pretrained weights that a library has for a network.

    They are fetched and kept where the library keeps them.

    Args:
        model: of `build_network`, perhaps with gates; changed in place.
        name: see `build_network`.

    Returns:
        What starts anew.

    Raises:
        OSError: the weights cannot be fetched.
        ValueError: the library has none for this network, or they do not fit.
    """
    prefix, own = split_name(name)
    with _fetching(name, "weights"):
        if prefix == "timm":
            source = import_module("timm").create_model(own, pretrained=True)
        elif prefix == "torchvision":
            models = import_module("torchvision").models
            source = models.get_model(own, weights="DEFAULT", **_torchvision_options(own, 3))
        else:
            auto = import_module("transformers").AutoModelForImageClassification
            source = auto.from_pretrained(own)
    weights = source.state_dict()
    return start_from_state(network_of(model), weights, f"the pretrained weights of {name}")


def library_classes(name: str) -> int:
    """Return the number of classes of a library's network with its pretrained weights.

    Raises:
        ValueError: there are no such weights.
        OSError: the configuration of a network of Hugging Face cannot be fetched.
    """
    prefix, own = split_name(name)
    with _fetching(name, "configuration"):
        if prefix == "timm":
            return (
                import_module("timm").get_pretrained_cfg(own, allow_unregistered=False).num_classes
            )
        if prefix == "torchvision":
            weights = import_module("torchvision").models.get_model_weights(own).DEFAULT
            return len(weights.meta["categories"])
        return import_module("transformers").AutoConfig.from_pretrained(own).num_labels


@contextmanager
def _fetching(name: str, what: str) -> Iterator[None]:
    """Say in one sentence why a library's weights or configuration are not to be had."""
    try:
        yield
    except OSError as error:
        raise ConnectionError(
            f"the {what} of {name} cannot be fetched: {first_sentence(error)}; fetch them where"
            " there is a network, or give a file of weights"
        ) from error
    except Exception as error:  # of any kind: the library's
        raise ValueError(f"{name} has no pretrained weights: {first_sentence(error)}") from error


def network_of(model: nn.Module) -> nn.Module:
    """Return the network as its library knows it: what `Logits` holds, any other itself."""
    return model.model if isinstance(model, Logits) else model


def split_name(name: str) -> tuple[str, str]:
    """Return the prefix and the library's own name; raise ValueError where one is not known."""
    prefix, _, own = name.partition(":")
    if prefix not in LIBRARIES:
        raise unknown("library", prefix, LIBRARIES)
    known = library_names(prefix)
    arch, _, tag = own.partition(".")
    if known and f"{prefix}:{arch}" not in known:
        raise unknown("model", name, known, f"spem models '{prefix}:*'")
    if tag and prefix == "timm":
        tagged = import_module("timm").list_pretrained(f"{arch}.*")
        if own not in tagged:
            raise unknown("model", name, [f"timm:{arch}", *(f"timm:{each}" for each in tagged)])
    return prefix, own


@contextmanager
def _importing(prefix: str) -> Iterator[None]:
    """Say how to install what is not installed."""
    package = LIBRARIES[prefix]
    try:
        yield
    except (ImportError, RuntimeError, AttributeError) as error:
        said = first_sentence(error)
        raise ImportError(
            f"{prefix}:… is a network of {package}, which cannot be imported ({said}):"
            f" pip install {package}"
        ) from error


def _torchvision_options(own: str, in_channels: int) -> dict[str, Any]:
    if own not in _AUXILIARY:
        return {}
    # The pretrained weights expect the images that `transform_input` makes of the usual ones.
    return {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}


def _build_torchvision(own: str, num_classes: int, in_channels: int, **drops: float) -> nn.Module:
    models, options = import_module("torchvision").models, _torchvision_options(own, in_channels)
    model = models.get_model(own, weights=None, num_classes=num_classes, **options, **drops)
    if in_channels != 3:
        name, first = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
        parent, _, child = name.rpartition(".")
        sizes = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
        conv = nn.Conv2d(in_channels, first.out_channels, **sizes, bias=first.bias is not None)
        setattr(model.get_submodule(parent), child, conv)
    return model


def _configure_transformers(
    own: str, num_classes: int, in_channels: int, library: dict[str, Any] | None
) -> Any:
    transformers = import_module("transformers")
    if library and "config" in library:
        config = transformers.AutoConfig.for_model(**library["config"])
    else:
        config = transformers.AutoConfig.from_pretrained(own)
    config.num_labels = num_classes
    if in_channels != getattr(config, "num_channels", 3):
        config.num_channels = in_channels
    return config


def first_sentence(error: Exception) -> str:
    """Return the first line of what an error says, without its full stop."""
    text = str(error).strip().partition("\n")[0].strip() or type(error).__name__
    return shorten(text)[1:-1].rstrip(".")
