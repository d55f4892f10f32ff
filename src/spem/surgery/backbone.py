"""Load the checkpoint of a network without gates into one with gates, without losing a weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from spem._checks import check_module, check_names
from spem._messages import shorten
from spem.gates import Attention


@dataclass(frozen=True)
class Loaded:
    """What `load_backbone` did with the keys of a checkpoint; prints as one line.

    Attributes:
        loaded: keys that were copied.
        new: keys of the gates, which a checkpoint without gates lacks.
        ignored: keys that match a pattern of `ignore`.
    """

    loaded: list[str]
    new: list[str]
    ignored: list[str]

    def __str__(self) -> str:
        return f"{len(self.loaded)} loaded, {len(self.new)} new, {len(self.ignored)} ignored"


def load_backbone(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, ignore: Sequence[str] = ()
) -> Loaded:
    """Load the checkpoint of a network without gates into one with gates.

    Nothing is loaded unless every key of the backbone finds its place.

    Args:
        model: a network with gates, changed in place.
        state_dict: of the same network without gates; keys may begin with "module.".
        ignore: patterns of keys to leave out on both sides, such as "fc.*" of another number of
            classes.

    Returns:
        Which keys were loaded, are new, or were ignored.

    Raises:
        ValueError: a key has no place in the model, a place has no key, or shapes differ.
    """
    check_module(model)
    check_state(state_dict)
    given = {key.removeprefix("module."): value for key, value in state_dict.items()}
    own = model.state_dict()
    gates = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Attention))
    patterns = check_names("ignore", ignore)
    ignored = sorted(k for k in own | given if any(fnmatchcase(k, p) for p in patterns))
    new = [key for key in own if key.startswith(gates) and key not in given]
    left_out = {*ignored, *new}
    given, own = ({k: v for k, v in d.items() if k not in left_out} for d in (given, own))
    if differences := key_differences(given, own):
        raise ValueError(f"nothing was loaded, the backbone would lose weights: {differences}")
    model.load_state_dict(given, strict=False)
    return Loaded(sorted(given), new, ignored)


def check_state(state_dict: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a state dict maps names to tensors."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is {shorten(state_dict)}: load the file first, by torch.load")
    if isinstance(state_dict.get("state_dict"), Mapping):
        raise ValueError("this is a whole checkpoint: give its part checkpoint['state_dict']")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"state_dict must map names to tensors, got {shorten(key)}: {shorten(value)}"
            )


def key_differences(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor] | Mapping[str, None]
) -> str:
    """Describe how a state dict differs from an expected one in keys and shapes.

    Args:
        given: the state dict.
        expected: the other one; None for tensors of any shape.

    Returns:
        The number and the first three keys of every kind of difference; "" without any.
    """
    kinds = {
        "unexpected": sorted(given.keys() - expected.keys()),
        "missing": sorted(expected.keys() - given.keys()),
        "mismatched": [
            f"{key} {tuple(given[key].shape)} for {tuple(tensor.shape)}"
            for key, tensor in sorted(expected.items())
            if tensor is not None and key in given and given[key].shape != tensor.shape
        ],
    }
    return "; ".join(
        f"{len(keys)} {kind} ({', '.join(keys[:3] + ['…'] * (len(keys) > 3))})"
        for kind, keys in kinds.items()
        if keys
    )
