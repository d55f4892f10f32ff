"""`spem models`: the networks that can be built by name."""

from fnmatch import fnmatchcase

_SIDE = 32  # of CIFAR's images, in pixels


def list_models(patterns: tuple[str, ...]) -> None:
    """List the networks that can be built, with their size for images of 32×32 pixels.

    Each is shown without gates and with 10 classes. Other depths can be built as well: ResNets of
    6n+2 layers (basic blocks) and 9n+2 (bottlenecks), DenseNets of 6n+4.

    Args:
        patterns: names to list, like 'vgg*' or '*50', or the full name of any other network; if not
            given: all.
    """
    from spem._messages import unknown
    from spem.compare.tables import show
    from spem.models.names import USUAL
    from spem.models.registry import MODELS

    known, names = [*USUAL, *MODELS], []
    for pattern in patterns or ["*"]:
        found = [name for name in known if fnmatchcase(name, pattern)]
        if not found and any(sign in pattern for sign in "*?["):
            raise unknown("model", pattern, known)
        names += [name for name in found or [pattern] if name not in names]
    header = ["model", "parameters", "multiply-adds", "input", "note"]
    show(header, [_describe(name) for name in names])


def _describe(name: str) -> tuple[str, int | None, str | None, str, str]:
    """Return the row of a network, which is built without memory for its weights."""
    import torch

    from spem.models import create_model
    from spem.models.names import imagenet_note
    from spem.models.registry import MODELS
    from spem.train.setup import count_macs

    image, note = f"3×{_SIDE}×{_SIDE}", imagenet_note(name)
    with torch.device("meta"):
        try:
            network = create_model(name)
        except Exception as error:
            if name not in MODELS:
                raise
            return name, None, None, image, f"cannot be built here: {error}"
        try:
            macs = f"{count_macs(network, torch.empty(1, 3, _SIDE, _SIDE))[0] / 1e6:,.1f} M"
        except RuntimeError:  # PyTorch's, of a network of the user's
            macs, note = None, "takes no images of this size"
    return name, sum(each.numel() for each in network.parameters()), macs, image, note
