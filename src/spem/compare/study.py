"""Studies as YAML: a grid of gates, networks, data sets and seeds or folds."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from itertools import product
from typing import Any

from spem._messages import shorten, unknown
from spem._schema import Count, Options, Seed, Text, Texts, check_fold, check_value
from spem._yaml import read_yaml, shipped_names
from spem.compare.axes import MOST_RUNS, AxisValue, read_axis, refuse_axis_keys
from spem.compare.planned import PlannedRun, row_name
from spem.train.identity import record_key
from spem.train.recipe_files import load_recipe
from spem.train.resolving import resolve

_STUDIES = resources.files("spem.compare") / "studies"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid of gates × models × data sets × overrides × seeds, or folds in place of the seeds.

    An axis is one value or a list. A value is a name, or a mapping that holds the name, for example
    `{gate: se, pool: fixed, mix: 0.3}` or `{model: vgg16, weight_decay: 5e-4}`. In a mapping
    `label` renames the rows, `against` names the row that they are compared with, and
    `cross: {mix: [0, 0.5, 1]}` stands for three mappings, one with each value of `mix`.

    Args:
        title: a few words.
        question: what the comparison is to answer.
        method: the gate that the study is about, or names of rows, one or a list: the report shows
            them in colour among however many; None: SPEM, and gates of one's own.
        config: a bundled recipe or a YAML file; None: digits for the digits, else cifar_quick.
        recipe: recipe keys of all runs.
        import_: Python files that register gates or networks, see `Recipe`. The key is `import`.
        gates: names or mappings with options of the gate, `placement`, `at` and `mask`; "none": no
            gate.
        models: names or mappings with recipe keys.
        data: names or mappings with recipe keys.
        overrides: mappings of recipe keys.
        seeds: a number N for 0 … N−1, or a list of different seeds; None: 3, and with `folds` the
            seed 0.
        folds: number of equal parts of the images, stratified by class. Each is the test split of
            one run, so that every image is measured once; one seed decides them all. None: the
            data's own test split.
        baseline: the row that the others are compared with; None: the first gate's.
        small: keys of a study that replace those above in its small form.

    Raises:
        ValueError: a value is not allowed, the grid is empty, or two of its entries are one run.
    """

    title: Text | None = None
    question: Text | None = None
    method: Any = None
    config: Text | None = None
    recipe: Options = field(default_factory=dict)
    import_: Texts = field(default_factory=list)
    gates: Any = field(default_factory=lambda: ["none", "spem"])
    models: Any = "resnet20"
    data: Any = "digits"
    overrides: Any = None
    seeds: Any = None
    folds: Count | None = None
    baseline: Text | None = None
    small: Options | None = None

    def __post_init__(self) -> None:
        for key in fields(self):
            if key.type is not Any:
                check_value(key.name.rstrip("_"), getattr(self, key.name), key.type)

    def plan(self, **recipe_keys: Any) -> list[PlannedRun]:
        """Return the runs of the grid, those of a seed or a fold together.

        Args:
            recipe_keys: keys of all runs, whatever the study says of them.

        Raises:
            ValueError: see the class; or a recipe key or its value is not allowed.
        """
        repeats = self._list_repeats()
        refuse_axis_keys(self.recipe)
        refuse_axis_keys(recipe_keys)
        if files := [*self.import_, *recipe_keys.get("import", [])]:
            recipe_keys["import"] = files
        axes = [
            read_axis("data", self.data),
            read_axis("model", self.models),
            read_axis("overrides", self.overrides or [{}]),
            read_axis("gate", self.gates),
        ]
        *_, overrides, gates = axes
        baseline = self.baseline
        if baseline is None:  # the first gate under the same overrides, or else the first row
            several = len(gates) > 1
            baseline = row_name(gates[0].label, "" if several else overrides[0].label)
        if (count := math.prod(map(len, [repeats, *axes]))) > MOST_RUNS:
            raise ValueError(f"the grid has {count:,} runs, must have at most {MOST_RUNS:,}")
        runs = [
            self._plan_run(repeat, values, recipe_keys, baseline)
            for repeat in repeats
            for values in product(*axes)
        ]
        _refuse_collisions(runs)
        rows = {run.row: None for run in runs}
        for name in self.methods or ():
            if name not in (known := {*rows, *(run.gate for run in runs)}):
                raise unknown("gate or row of method", name, known)
        return [run._replace(against=_find_baseline(run, rows)) for run in runs]

    @property
    def methods(self) -> list[str] | None:
        """The names in `method` as a list, None without any."""
        names = [self.method] if isinstance(self.method, str) else self.method
        if names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"method must be a name or a list of names, got {shorten(names)}")
        return names

    def _list_repeats(self) -> list[dict[str, int | None]]:
        """Return the recipe keys of each run of a row: its seed, or seed, folds and fold."""
        seeds = self._list_seeds()
        if self.folds is None:
            return [{"seed": seed, "folds": None, "fold": None} for seed in seeds]
        check_fold(1, self.folds)
        if len(seeds) > 1:
            raise ValueError(
                "seeds must be a single one with folds, such as 1 or [7], which decides what is in"
                f" each fold, got {shorten(self.seeds)}"
            )
        own: dict[str, int | None] = {"seed": seeds[0], "folds": self.folds}
        return [own | {"fold": fold} for fold in range(1, self.folds + 1)]

    def _list_seeds(self) -> list[int]:
        seeds = self.seeds
        if seeds is None:
            seeds = 3 if self.folds is None else 1
        if type(seeds) is int:
            seeds = list(range(min(seeds, MOST_RUNS + 1)))
        if not isinstance(seeds, list) or not 0 < len(seeds) <= MOST_RUNS:
            raise ValueError(
                f"seeds must be a number from 1 to {MOST_RUNS:,} or a list of seeds, got"
                f" {shorten(self.seeds)}"
            )
        for seed in seeds:
            check_value("seed", seed, Seed)
        if repeated := [seed for seed, times in Counter(seeds).items() if times > 1]:
            raise ValueError(f"seeds are repeated: {', '.join(map(str, sorted(repeated)))}")
        return seeds

    def _plan_run(
        self,
        repeat: dict[str, int | None],
        values: Sequence[AxisValue],
        recipe_keys: dict[str, Any],
        baseline: str,
    ) -> PlannedRun:
        data, model, overrides, gate = values
        for value in values:
            if replaced := value.named_keys & recipe_keys.keys():
                raise ValueError(
                    f"{min(replaced)} is part of the name {shorten(value.label)}: leave out its"
                    " flag, or give the mapping a label"
                )
        settings = self.recipe | data.recipe | model.recipe | overrides.recipe | gate.recipe
        settings |= recipe_keys
        config = self.config or ("digits" if settings["data"] == "digits" else "cifar_quick")
        recipe = resolve(load_recipe(config, **settings | repeat, replicas=1))
        labels = (gate.label, model.label, data.label, overrides.label)
        against = gate.against or overrides.against or baseline
        return PlannedRun(record_key(recipe), *labels, against, recipe)


def _find_baseline(run: PlannedRun, rows: Collection[str]) -> str | None:
    """Return the row that a run is compared with, which may be named by its gate alone."""
    wanted = run.against or ""
    row = wanted if wanted in rows else row_name(wanted, run.overrides)
    if row not in rows:
        raise unknown("row to compare with", wanted, rows)
    return None if row == run.row else row


def study_names() -> list[str]:
    """Return the names of the bundled studies."""
    return shipped_names(_STUDIES)


def load_study(name_or_path: str | None, small: bool = False, **replaced: Any) -> Study:
    """Return a bundled study, one from a YAML file, or one of the given keys alone.

    Args:
        name_or_path: one of `study_names()`, or a file whose keys are those of `Study`; None for
            neither.
        small: take its small form.
        **replaced: keys of `Study` that replace those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown study or key, no valid YAML, or no small form.
    """
    if not isinstance(small, bool):
        raise ValueError(f"small is {shorten(small)}, must be True or False")
    settings: dict[str, Any] = {}
    if name_or_path is not None:
        settings = read_yaml(name_or_path, "study", _STUDIES)
    known = {f.name.rstrip("_"): f.name for f in fields(Study)}
    small_keys = settings.get("small") or {}
    check_value("small", small_keys, Options)
    for key in [*settings, *small_keys]:
        if key not in known:
            raise unknown("study key", key, known)
    if small:
        if not settings.get("small"):
            raise ValueError(f"{name_or_path or 'this comparison'} has no small form")
        settings = _replace(settings, settings["small"])
    settings = _replace(settings, replaced)
    return Study(**{known[key]: value for key, value in settings.items()})


def _replace(settings: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return settings with others in their place; seeds go where only folds are given, or back."""
    for key, alternative in (("folds", "seeds"), ("seeds", "folds")):
        if others.get(key) is not None and alternative not in others:
            settings = settings | {alternative: None}
    return settings | others


def _refuse_collisions(runs: Sequence[PlannedRun]) -> None:
    by_key: dict[str, str] = {}
    names: set[str] = set()
    for run in runs:
        name = f"{shorten(run.row)} of {run.model} on {run.data} with {run.repeat}"
        if run.key in by_key:
            raise ValueError(f"{by_key[run.key]} and {name} are the same run: their recipes agree")
        if name in names:
            raise ValueError(f"two different runs are both called {name}: give them labels")
        by_key[run.key] = name
        names.add(name)
