"""`spem models`: the networks that can be built by name."""

from fnmatch import fnmatchcase

_SIDE = 32  # of CIFAR's images, in pixels


def list_models(patterns: tuple[str, ...]) -> None:
    """List the networks that can be built, with their size for images of 32×32 pixels.

    Each is shown without gates and with 10 classes. Other depths can be built as well: ResNets of
    6n+2 layers (basic blocks) and 9n+2 (bottlenecks), DenseNets of 6n+4.

    Args:
        patterns: names to list, like 'vgg*' or '*50', or the full name of any other network; if not
            given: all. Of another library's networks, like 'timm:resnet*', only the names are
            listed, and of one full name the size as well.
    """
    from spem.compare.tables import show

    names = [name for pattern in patterns or ["*"] for name in _find_names(pattern)]
    header = ["model", "parameters", "multiply-adds", "input", "note"]
    many = any(":" in pattern and _is_wild(pattern) for pattern in patterns)
    # To build all of timm's would take minutes.
    rows = {n: (n, None, None, "", "") if many and ":" in n else _describe(n) for n in names}
    show(header, rows.values())


def _is_wild(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _find_names(pattern: str) -> list[str]:
    """Return the networks that match a pattern; one without wildcards stands for itself."""
    from spem._messages import unknown
    from spem.models.libraries import LIBRARIES, library_names
    from spem.models.names import USUAL
    from spem.models.registry import MODELS

    if not _is_wild(pattern):
        return [pattern]
    prefix = pattern.partition(":")[0]
    known = library_names(prefix) if prefix in LIBRARIES else [*USUAL, *MODELS]
    if not (found := [name for name in known if fnmatchcase(name, pattern)]):
        raise unknown("model", pattern, known)
    return found


def _describe(name: str) -> tuple[str, int | None, str | None, str, str]:
    """Return the row of a network; one of this library is built without memory for its weights."""
    import torch

    from spem.models import create_model
    from spem.models.names import imagenet_note
    from spem.models.registry import MODELS
    from spem.train.setup import count_macs

    image, note = f"3×{_SIDE}×{_SIDE}", imagenet_note(name)
    # Some networks of other libraries cannot be built on a meta device.
    with torch.device("cpu" if ":" in name else "meta"):
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
