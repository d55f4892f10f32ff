"""Load the checkpoint of a network without gates into one with gates, without losing a weight."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        ignored: keys that match a pattern of `ignore`, and the counter of an average.
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

    Nothing is loaded unless every key of the backbone finds its place. What wrappers put before all
    keys ("module.", "_orig_mod.", "model.", or any other prefix) is left out. As in PyTorch, a
    checkpoint may lack the counters `num_batches_tracked`, which then stay.

    Args:
        model: a network with gates, changed in place.
        state_dict: of the same network without gates, or of its average (`AveragedModel`).
        ignore: patterns of keys to leave out on both sides, such as "fc.*" of another number of
            classes.

    Returns:
        Which keys were loaded, are new, or were ignored.

    Raises:
        ValueError: a key has no place in the model, a place has no key, or shapes differ.
    """
    check_module(model)
    check_state(state_dict)
    places = {without_compiled(key): key for key in model.state_dict()}
    own = {key: model.state_dict()[place] for key, place in places.items()}
    given, counter = strip_prefix(state_dict, own)
    gates = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Attention))
    patterns = check_names("ignore", ignore)
    ignored = sorted(k for k in own | given if any(fnmatchcase(k, p) for p in patterns))
    lacking = own.keys() - given.keys()
    new = [key for key, place in places.items() if key in lacking and place.startswith(gates)]
    left_out = {*ignored, *new, *(k for k in lacking if k.endswith("num_batches_tracked"))}
    given, own = ({k: v for k, v in d.items() if k not in left_out} for d in (given, own))
    if differences := key_differences(given, own):
        raise ValueError(f"nothing was loaded, the backbone would lose weights: {differences}")
    load_tensors(model, {places[key]: value for key, value in given.items()}, strict=False)
    return Loaded(sorted(given), new, ignored + counter)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load tensors whose names are those of a model's own state dict now.

    A file of tensors has no versions of modules, which PyTorch keeps beside them: some modules
    refuse such a state dict, or take it for one of an old version. These names are today's.
    """
    state = OrderedDict(tensors)
    vars(state)["_metadata"] = getattr(model.state_dict(), "_metadata", None)
    model.load_state_dict(state, strict=strict)


def without_compiled(key: str) -> str:
    """Return a key without the names that `torch.compile` puts between those of modules.

    Example:
        >>> without_compiled("module._orig_mod.conv.weight")
        'module.conv.weight'
    """
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def strip_prefix(
    state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Take the prefix of wrappers off the keys of a checkpoint.

    Returns:
        The checkpoint with the keys of the network, and the key that counts what an average has
        averaged, in a list, if there is one.
    """
    given = {without_compiled(key): value for key, value in state_dict.items()}
    counter = [k for k in given if k.rpartition(".")[2] == "n_averaged" and k not in own]
    given = {key: value for key, value in given.items() if key not in counter}
    prefixes = _find_prefixes(given, own)
    if not prefixes and (wrapped := _find_prefixes(own, given)):
        raise ValueError(
            f"the keys of the model begin with {shorten(wrapped[0])}, those of the checkpoint do"
            " not: give the network that is inside the wrapper"
        )
    prefix = "" if "" in prefixes or not prefixes else prefixes[0]
    stripped = {key.removeprefix(prefix): value for key, value in given.items()}
    if len(stripped) < len(given):
        prefixes.append("")
    if prefix and len(prefixes) > 1:
        raise ValueError(
            "the checkpoint holds the network more than once: give the keys of one, which begin"
            f" with {' or '.join(map(shorten, prefixes[:3]))}"
        )
    return stripped, counter


def _find_prefixes(given: Iterable[str], own: Iterable[str]) -> list[str]:
    """Return what stands before most of a network's own keys in those of a checkpoint.

    Returns:
        The prefix, "" for none; several if as many keys follow each, no one if no key is found.
    """
    wanted = set(own)
    depth = max((key.count(".") for key in wanted), default=0) + 1
    found: Counter[str] = Counter()
    for key in given:
        parts = key.split(".")
        for i in range(max(0, len(parts) - depth), len(parts)):
            if ".".join(parts[i:]) in wanted:
                found[".".join([*parts[:i], ""])] += 1
    most = max(found.values(), default=0)
    return [prefix for prefix, count in found.items() if count == most]


def check_state(state_dict: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a state dict maps names to tensors."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict is {shorten(state_dict)}: load the file first, by torch.load")
    if parts := [f"checkpoint[{shorten(k)}]{end}" for k, end in _find_states(state_dict)]:
        raise ValueError(f"this is a whole checkpoint: give its part {' or '.join(parts[:3])}")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"state_dict must map names to tensors, got {shorten(key)}: {shorten(value)}"
            )


def _find_states(checkpoint: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the keys of a checkpoint that hold state dicts or modules, and how to take these."""
    for key, value in checkpoint.items():
        if isinstance(value, nn.Module):
            yield key, ".state_dict()"
        elif isinstance(value, Mapping) and (key == "state_dict" or _holds_tensors(value)):
            yield key, ""


def _holds_tensors(values: Mapping[str, object]) -> bool:
    return any(isinstance(value, Tensor) for value in values.values())


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
