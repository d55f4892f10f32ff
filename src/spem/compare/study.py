"""Studies: which networks are compared, on which data, with which seeds, as YAML."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from itertools import product
from typing import Any, NamedTuple

from spem._messages import unknown
from spem._yaml import read_yaml, shipped_names
from spem.compare.planned import Cell, key_of, row_name
from spem.train.fitting import resolve
from spem.train.recipe import AXES, load_recipe

_STUDIES = resources.files("spem.compare") / "studies"
_OF_GATES = ("placement", "mask")


class Entry(NamedTuple):
    """One value of an axis: its label, its name, recipe keys, gate options, its baseline.

    `said` are the recipe keys whose values the label repeats.
    """

    label: str
    name: str | None
    recipe: dict[str, Any]
    options: dict[str, Any]
    against: str | None
    said: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of gates × models × data sets × overrides × seeds.

    An axis is one value or a list. A value is a name, or a mapping of the name, for example
    `{gate: se, pool: fixed, mix: 0.3}` or `{model: vgg16, weight_decay: 5e-4}`, in which `label`
    renames its rows, `against` names the row that its differences are taken to, and
    `cross: {mix: [0, 0.5, 1]}` stands for one value each.

    Args:
        title: a few words.
        question: what the comparison is to answer.
        config: a shipped recipe or a YAML file; None: digits for the digits, else cifar_quick.
        recipe: recipe keys of all cells.
        gates: names or mappings with options of the gate, `placement` and `mask`; none: no gate.
        models: names or mappings with recipe keys.
        data: names or mappings with recipe keys.
        overrides: mappings of recipe keys.
        seeds: a number N for 0 … N−1, or a list of different seeds.
        baseline: the row that differences are taken to; None: the first gate's.
        small: keys of a study that replace those above in its small form.

    Raises:
        ValueError: a value is not allowed, the grid is empty, or two of its cells are the same run.
    """

    title: str | None = None
    question: str | None = None
    config: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    gates: Any = field(default_factory=lambda: ["none", "spem"])
    models: Any = "resnet20"
    data: Any = "digits"
    overrides: Any = None
    seeds: Any = 3
    baseline: str | None = None
    small: dict[str, Any] | None = None

    def cells(self, **recipe_keys: Any) -> list[Cell]:
        """Return the cells, those of a seed together.

        Args:
            recipe_keys: replace those of all cells.

        Raises:
            ValueError: see the class; or a recipe key or its value is not allowed.
        """
        _refuse_axes(self.recipe)
        axes = [
            _entries("data", self.data),
            _entries("model", self.models),
            _entries("overrides", self.overrides or [{}]),
            _entries("gate", self.gates),
        ]
        baseline = self._baseline()
        cells = [
            self._cell(seed, entries, recipe_keys, baseline)
            for seed in self._seeds()
            for entries in product(*axes)
        ]
        _refuse_collisions(cells)
        rows = {cell.row: None for cell in cells}
        return [cell._replace(against=_baseline_of(cell, rows)) for cell in cells]

    def _seeds(self) -> list[int]:
        if isinstance(self.seeds, int) and not isinstance(self.seeds, bool) and self.seeds >= 1:
            return list(range(self.seeds))
        if isinstance(self.seeds, list) and self.seeds:
            repeated = sorted({s for s in self.seeds if self.seeds.count(s) > 1}, key=str)
            if repeated:
                raise ValueError(f"seeds are repeated: {', '.join(map(str, repeated))}")
            return self.seeds
        raise ValueError(
            f"seeds must be a number of at least 1 or a list of seeds, got {self.seeds!r}"
        )

    def _cell(
        self, seed: int, entries: Sequence[Entry], recipe_keys: dict[str, Any], baseline: str
    ) -> Cell:
        data, model, overrides, gate = entries
        for entry in entries:
            if hidden := entry.said & recipe_keys.keys():
                raise ValueError(
                    f"{min(hidden)} is part of the name {entry.label!r}: leave out its flag, or"
                    " give the mapping a label"
                )
        config = self.config or ("digits" if data.name == "digits" else "cifar_quick")
        settings = self.recipe | data.recipe | model.recipe | overrides.recipe | gate.recipe
        settings |= recipe_keys
        names = {"data": data.name, "model": model.name, "gate": gate.name}
        recipe = load_recipe(
            config, **settings, **names, gate_options=gate.options, seed=seed, replicas=1
        )
        recipe = resolve(recipe)
        labels = (gate.label, model.label, data.label, overrides.label)
        against = gate.against or overrides.against or baseline
        return Cell(key_of(recipe), *labels, against, recipe)

    def _baseline(self) -> str:
        """Return the row, or the gate whose rows of the same overrides, are compared with."""
        if self.baseline is not None:
            return self.baseline
        gates = _entries("gate", self.gates)
        overrides = _entries("overrides", self.overrides or [{}])
        return gates[0].label if len(gates) > 1 else row_name(gates[0].label, overrides[0].label)


def _baseline_of(cell: Cell, rows: Collection[str]) -> str | None:
    """Return the row that a cell is compared with, which may be named by its gate alone."""
    wanted = cell.against or ""
    found = wanted if wanted in rows else row_name(wanted, cell.overrides)
    if found not in rows:
        raise unknown("row to compare with", wanted, rows)
    return None if found == cell.row else found


def study_names() -> list[str]:
    """Return the names of the studies that come with the package."""
    return shipped_names(_STUDIES)


def load_study(name_or_path: str | None, small: bool = False, **replaced: Any) -> Study:
    """Return a shipped study, one from a YAML file, or one of its keys alone.

    Args:
        name_or_path: one of `study_names()`, or a file whose keys are those of `Study`; None: none.
        small: take its small form.
        **replaced: keys that replace those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown study or key, no valid YAML, or no small form.
    """
    settings: dict[str, Any] = {}
    if name_or_path is not None:
        settings = read_yaml(name_or_path, "study", _STUDIES)
    known = [f.name for f in fields(Study)]
    for key in [*settings, *(settings.get("small") or {})]:
        if key not in known:
            raise unknown("study key", key, known)
    if small:
        if not settings.get("small"):
            raise ValueError(f"{name_or_path or 'this comparison'} has no small form")
        settings = settings | settings["small"]
    return Study(**settings | replaced)


def _entries(axis: str, values: Any) -> list[Entry]:
    values = values if isinstance(values, list) else [values]
    if not values:
        raise ValueError(f"the grid is empty: it has no {axis}")
    return [_entry(axis, value) for given in values for value in _crossed(axis, given)]


def _crossed(axis: str, value: Any) -> Iterator[Any]:
    """Yield a value of an axis once for each combination of the lists of its `cross`."""
    if not isinstance(value, dict) or "cross" not in value:
        yield value
        return
    lists = value["cross"]
    if not isinstance(lists, dict) or not all(isinstance(v, list) and v for v in lists.values()):
        raise ValueError(f"cross must map keys to lists of values, got {lists!r} ({axis})")
    for chosen in product(*lists.values()):
        own = {key: each for key, each in value.items() if key != "cross"}
        pairs = dict(zip(lists, chosen, strict=True))
        if "label" in own:
            own["label"] = " ".join([str(own["label"]), *(_say(k, v) for k, v in pairs.items())])
        yield own | pairs


def _entry(axis: str, value: Any) -> Entry:
    if axis == "overrides" and not isinstance(value, dict):
        raise ValueError(f"overrides must be mappings of recipe keys, got {value!r}")
    keys = dict(value) if isinstance(value, dict) else {axis: value}
    label, against = keys.pop("label", None), keys.pop("against", None)
    name = None
    if axis != "overrides":
        name = keys.pop(axis, "")
        if not ((isinstance(name, str) and name) or (name is None and axis == "gate")):
            raise ValueError(f"{axis} must be a name or a mapping that holds one, got {value!r}")
        name = None if name == "none" else name
    options: dict[str, Any] = {}
    if axis == "gate":
        options = {key: keys.pop(key) for key in list(keys) if key not in _OF_GATES}
    _refuse_axes(keys)
    said = [_say(key, each) for key, each in (options | keys).items()]
    given = [] if axis == "overrides" else [name or "none"]
    shown = label if label is not None else " ".join([*given, *said])
    hidden = frozenset() if label is not None else frozenset(keys)
    return Entry(str(shown), name, keys, options, against, hidden)


def _refuse_axes(keys: Any) -> None:
    if not isinstance(keys, dict):
        raise ValueError(f"recipe must map recipe keys to values, got {keys!r}")
    for key in keys:
        if key in AXES:
            raise ValueError(f"{key} has an axis of its own in a study, it cannot stand in {keys}")


def _say(key: str, value: Any) -> str:
    return f"{key}={value}"


def _refuse_collisions(cells: Sequence[Cell]) -> None:
    runs: dict[str, Cell] = {}
    places: dict[tuple[str, str, str, int], Cell] = {}
    for cell in cells:
        place = (cell.row, cell.model, cell.data, cell.recipe.seed)
        if cell.key in runs:
            other = runs[cell.key]
            raise ValueError(
                f"two cells are the same run: {_place(other)} and {_place(cell)} have one recipe"
            )
        if place in places:
            raise ValueError(f"two cells have one name, {_place(cell)}: give them labels")
        runs[cell.key] = places[place] = cell


def _place(cell: Cell) -> str:
    return f"{cell.row!r} of {cell.model} on {cell.data} with seed {cell.recipe.seed}"
