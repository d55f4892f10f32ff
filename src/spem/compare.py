"""A grid of gates × models × data sets × seeds: runs that are never lost and never run twice."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import join
from typing import Any, Literal

from spem import launch
from spem.board import Board, results
from spem.checkpoint import write_text
from spem.choices import unknown
from spem.costs import build_networks, measure_costs
from spem.devices import create_fabric, keep_freed_memory
from spem.extras import needs_extra
from spem.recipes.reading import parse_yaml
from spem.records import Ledger, Record, groups, make_failure, make_record, relabel
from spem.study import Cell, folder_of, load_study
from spem.tables import show

with needs_extra("train"):
    import yaml
    from filelock import FileLock, Timeout
    from rich import get_console

Launcher = Literal["local", "ray"]
_SEVERAL = ("gates", "model", "data", "overrides")  # flags of several words


def compare(
    recipe_keys: dict[str, Any],
    *,
    out: str,
    study: str | None = None,
    small: bool = False,
    gates: Sequence[str] = (),
    model: Sequence[str] = (),
    data: Sequence[str] = (),
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    config: str | None = None,
    jobs: int = 1,
    launcher: Launcher = "local",
    address: str | None = None,
    costs: bool = True,
) -> int:
    """Train a grid of networks with many seeds, and keep a record of each run.

    Runs that are finished in the folder are never run again, and those that were killed go on: the
    same command continues. When all are finished, speed and memory are measured. `spem report`
    makes the page.

    Args:
        recipe_keys: those of the keys below that were given; they hold for all runs.
        out: folder of the comparison.
        study: a shipped study (paper, pooling, ablation, backbones) or a YAML file.
        small: take the study's small form, which needs minutes on a CPU and no download.
        gates: gates to compare; the first is the baseline. Each a name, none, or a mapping like
            '{gate: se, pool: fixed, mix: 0.3, label: mixed}'.
        model: networks, each a name or a mapping like '{model: vgg16, weight_decay: 5e-4}'.
        data: data sets, each a name or a mapping like '{data: digits, image_size: 32}'.
        overrides: mappings of recipe keys, one run of each, like '{lr: 0.05}'.
        seeds: number of seeds, 0 and up.
        config: a shipped recipe or a YAML file; if not given: that of the study, else digits for
            the digits and cifar_quick for any other data.
        jobs: runs at once on this machine; 1 if not given. They share the threads.
        launcher: local or ray.
        address: of the Ray cluster; if not given: one on this machine.
        costs: measure speed and memory when all runs are finished, nothing else computing.
    """
    axes = {"gates": gates, "model": model, "data": data, "overrides": overrides}
    given: dict[str, Any] = {
        {"model": "models"}.get(key, key): list(map(_value, words))
        for key, words in axes.items()
        if words
    }
    given |= {k: v for k, v in (("seeds", seeds), ("config", config)) if v is not None}
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, must be at least 1")
    if address is not None and launcher != "ray":
        raise ValueError(f"address belongs to the launcher ray, not to {launcher!r}")
    run = _launcher(launcher, jobs, address)
    chosen = load_study(study, small, **given)
    cells = chosen.cells(**recipe_keys)
    flags = {"study": study, "small": small or None, **axes, "seeds": seeds, "config": config}
    said: dict[str, Any] = {"title": chosen.title, "question": chosen.question}
    said["commands"] = [_command(flags | recipe_keys, out)]
    return run_cells(cells, Path(out), run, jobs=jobs, costs=costs, said=said)


def _value(text: str) -> Any:
    """Return what a word of the command line says: a mapping in YAML or JSON, or a name."""
    return parse_yaml(text, text) if text.lstrip().startswith("{") else text


def _launcher(name: str, jobs: int, address: str | None) -> Callable[..., None]:
    if name not in ("local", "ray"):
        raise unknown("launcher", name, ("local", "ray"))
    if launch.under_torchrun():
        if name != "local" or jobs != 1:
            raise ValueError("under torchrun its processes share each run: --jobs 1, no launcher")
        return launch.run_here
    if name == "ray":
        return lambda runs, ended, tick: launch.run_ray(runs, address, ended, tick)
    return lambda runs, ended, tick: launch.run_local(runs, jobs, ended, tick)


def _command(flags: dict[str, Any], out: str) -> str:
    """Return the command that makes the same comparison."""
    words = ["spem", "compare"]
    for key, value in flags.items():
        if value is None or (isinstance(value, list | tuple) and not value):
            continue
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *map(str, value if key in _SEVERAL else [value])]
    return join([*words, "--out", out])


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    run: Callable[..., None],
    *,
    jobs: int = 1,
    costs: bool = True,
    said: dict[str, Any] | None = None,
) -> int:
    """Train the cells that have no result yet, and record them.

    Args:
        cells: of a study.
        folder: of the comparison.
        run: one of the functions of `spem.launch`, with its own arguments given.
        jobs: runs at once, for the estimate of the time that is left.
        costs: measure speed and memory afterwards.
        said: what `study.yaml` keeps for the report.

    Returns:
        1 if a run came to no result, else 0.

    Raises:
        ValueError: a network, its data and this machine do not fit, or another comparison works in
            the folder.
        FileNotFoundError: the data is not there.
        KeyboardInterrupt: Ctrl-C.
    """
    _check(_pending(cells, folder, Ledger(folder).records))
    if launch.under_torchrun() and not launch.is_first_process():
        pending = _pending(cells, folder, Ledger(folder).records)
        run(_runs(pending, folder), lambda *_: None, lambda _: None)
        return 0
    with _alone(folder):
        ledger = Ledger(folder)
        _take_up(cells, folder, ledger)
        if said is not None:
            planned = {*ledger.records, *(cell.key for cell in cells)}
            _write_study(folder / "study.yaml", said | {"planned": len(planned)})
        pending = _pending(cells, folder, ledger.records)
        for cell in pending:
            ledger.records.pop(cell.key, None)  # what failed is tried again
        live = all(cell.recipe.progress for cell in cells)
        with Board(cells, folder, ledger.records, jobs, live) as board:
            by_folder = {folder_of(folder, cell): cell for cell in pending}

            def ended(where: Path, error: str | None) -> None:
                cell = by_folder[where]
                ledger.append(make_failure(cell, error) if error else make_record(cell, where))
                board.tell(cell, error)

            run(_runs(pending, folder), ended, board.update)
        own = [ledger.records[cell.key] for cell in cells]
        header = ["model", "data", "gate", "n", "test top-1, %", "deviation"]
        show(header, results(own))
        if costs and not launch.under_torchrun():
            _measure(cells, folder, ledger)
    get_console().print(f"make the page with: spem report {folder}", soft_wrap=True, markup=False)
    return int(any(record["error"] for record in own))


def _pending(cells: Sequence[Cell], folder: Path, records: dict[str, Record]) -> list[Cell]:
    """Return the cells without a result: neither a record of one nor a folder of a finished run."""
    return [
        cell
        for cell in cells
        if not (cell.key in records and records[cell.key]["summary"])
        and not (folder_of(folder, cell) / "summary.json").exists()
    ]


def _runs(cells: Sequence[Cell], folder: Path) -> list[tuple[Any, Path]]:
    return [(replace(cell.recipe, progress=False), folder_of(folder, cell)) for cell in cells]


def _check(cells: Sequence[Cell]) -> None:
    """Build every network once, so that a mistake in the last cell is found before the first."""
    recipes = {(cell.model, cell.data, cell.row): cell.recipe for cell in reversed(cells)}.values()
    for recipe in recipes:
        create_fabric(recipe)
    for _ in build_networks(recipes):
        pass


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep any other comparison out of a folder; the system frees it when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"another comparison works in {folder}: wait for it, or name another folder"
        ) from None


def _take_up(cells: Sequence[Cell], folder: Path, ledger: Ledger) -> None:
    """Repair the records, and add those of finished runs that have none or other labels."""
    if ledger.damaged:
        get_console().print(
            f"{len(ledger.damaged)} damaged lines of {ledger.path} went to records.damaged; those"
            " of finished runs are written anew",
            soft_wrap=True,
            markup=False,
        )
    ledger.repair()
    for cell in cells:
        record = ledger.records.get(cell.key)
        if record and record["summary"]:
            if renamed := relabel(record, cell):
                ledger.append(renamed)
        elif (folder_of(folder, cell) / "summary.json").exists():
            ledger.append(make_record(cell, folder_of(folder, cell)))


def _write_study(path: Path, said: dict[str, Any]) -> None:
    """Write what the report says of the comparison; the commands of earlier ones stay."""
    before = yaml.safe_load(path.read_text())["commands"] if path.exists() else []
    commands = [*before, *(each for each in said["commands"] if each not in before)]
    write_text(path, yaml.safe_dump(said | {"commands": commands}, sort_keys=False, width=1000))


def _measure(cells: Sequence[Cell], folder: Path, ledger: Ledger) -> None:
    """Measure the costs of each group that has results of all its rows and no costs yet."""
    path = folder / "costs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    known = [json.loads(line) for line in lines]
    by_key = {cell.key: cell for cell in cells}
    measured = {(c["model"], c["data"], c["gate"], c["overrides"]) for c in known}
    found = [record for key, record in ledger.records.items() if key in by_key]
    for (model, data), rows in groups(found).items():
        records = [next((r for r in row if r["summary"]), None) for row in rows.values()]
        own = [record for record in records if record]
        places = {(model, data, r["gate"], r["overrides"]) for r in own}
        if not own or len(own) < len(rows) or places <= measured:
            continue
        get_console().print(f"measuring speed and memory of {len(own)} networks: {model}, {data}")
        keep_freed_memory()
        fresh = measure_costs(own, [by_key[record["key"]].recipe for record in own])
        known = [c for c in known if (c["model"], c["data"]) != (model, data)] + fresh
        write_text(path, "".join(json.dumps(cost) + "\n" for cost in known))
