"""A plain checkpoint for a network with gates, without a weight lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from spem.gates import Attention


@dataclass(frozen=True)
class Loaded:
    """What `load_backbone` did with the keys of a checkpoint; prints as a few lines.

    Attributes:
        loaded: keys that were copied.
        new: keys of gates, which a plain checkpoint has not.
        ignored: keys left out because `ignore` says so.
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
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is {state_dict!r}: load the file first, by torch.load")
    inner = state_dict.get("state_dict")
    if isinstance(inner, Mapping):
        raise ValueError("this is a whole checkpoint: give its part checkpoint['state_dict']")
    given = {key.removeprefix("module."): value for key, value in state_dict.items()}
    own = model.state_dict()
    gates = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Attention))
    ignored = sorted(k for k in own.keys() | given.keys() if any(fnmatchcase(k, p) for p in ignore))
    new = [key for key in own if key.startswith(gates) and key not in given]
    left_out = {*ignored, *new}
    problems = {
        "unexpected": sorted(given.keys() - own.keys() - left_out),
        "missing": sorted(own.keys() - given.keys() - left_out),
        "mismatched": [
            f"{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}"
            for key in sorted(own.keys() & given.keys() - left_out)
            if given[key].shape != own[key].shape
        ],
    }
    found = [f"{len(k)} {kind} ({_some(k)})" for kind, k in problems.items() if k]
    if found:
        raise ValueError(f"nothing was loaded, the backbone would lose weights: {'; '.join(found)}")
    loaded = sorted(given.keys() - left_out)
    model.load_state_dict({key: given[key] for key in loaded}, strict=False)
    return Loaded(loaded, new, ignored)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3] + ["…"] * (len(keys) > 3))
