"""From the words of a command to the call of its function."""

import sys
from collections.abc import Sequence
from inspect import signature
from shlex import quote
from typing import Any

from spem import __version__
from spem.cli.apply import evaluate, predict
from spem.cli.commands import data, gate_report, gates, report, search_placement, train
from spem.cli.parser import Parser, fail
from spem.cli.trained import Trained, TrainedRuns
from spem.compare.bench import bench
from spem.compare.comparison import compare
from spem.train.recipe import AXES, Recipe

_ALL = (train, data, evaluate, predict, gates, search_placement, gate_report)
_ALL += (compare, report, bench)
_COMMANDS = {function.__name__.replace("_", "-"): function for function in _ALL}
# Flags that several commands share; they become the first argument of the functions that have it.
_SHARED: dict[str, type] = {"recipe_keys": Recipe, "trained": Trained, "runs": TrainedRuns}
# The keys of a recipe that decide what its training images are.
_DATA_KEYS = ("data_dir", "download", "image_size", "validation", "mean", "std", "crop", "flip")
_DATA_KEYS += ("batch_size", "seed")
_LEFT_OUT: dict[str, Sequence[Any]] = {
    "compare": AXES,
    "data": [key for key in Recipe.__dataclass_fields__ if key not in _DATA_KEYS],
    "predict": ("data", "data_dir", "download"),
}
_POSITIONAL = {"predict": "RUN IMAGE ... ", "evaluate": "RUN ... ", "report": "FOLDER "}
_POSITIONAL |= {"data": "FOLDER "}


def run_command(argv: Sequence[str] | None) -> int:
    """Run one command and return the exit code; see `spem.cli.main`."""
    given = _parser().parse_args(argv, defaults=False)
    name, values = given.subcommand, given[given.subcommand].as_dict()
    try:
        _import_files(name, values)
        return _COMMANDS[name](*_take_shared(name, values), **values) or 0
    except (ValueError, OSError, ImportError) as error:
        return fail(str(error))
    except KeyboardInterrupt as interrupt:
        print("\nspem: interrupted", file=sys.stderr)
        if name == "search-placement":
            print("search again, with --overwrite or another --out", file=sys.stderr)
        elif name == "compare":
            print("the same command continues", file=sys.stderr)
        elif folder := getattr(interrupt, "folder", None):
            print(f"continue with: spem train --resume {quote(str(folder))}", file=sys.stderr)
        return 130


def _import_files(name: str, values: dict[str, Any]) -> None:
    """Run the files of --import; they stay a recipe key of the commands that have those."""
    if files := values.get("import"):
        from spem.models.user_files import import_files

        import_files(files)
        if _find_shared(name) is not Recipe:
            del values["import"]


def _take_shared(name: str, values: dict[str, Any]) -> list[Any]:
    """Remove the shared flags from the values of a command, and return its first argument."""
    shared = _find_shared(name)
    if shared is None:
        return []
    from spem.train.devices import keep_freed_memory

    keep_freed_memory()  # all of them compute
    parameters = [flag.rstrip("_") for flag in signature(shared).parameters]
    flags = [flag for flag in parameters if flag not in _LEFT_OUT.get(name, ())]
    given = {flag: values.pop(flag) for flag in flags if flag in values}
    return [given if shared is Recipe else shared(**given)]


def _find_shared(name: str) -> type | None:
    return _SHARED.get(next(iter(signature(_COMMANDS[name]).parameters)))


def _parser() -> Parser:
    top = Parser(
        prog="spem",
        usage="spem COMMAND ...",
        description="Channel attention for image recognition.",
        version=__version__,
    )
    subcommands = top.add_subcommands(
        title="commands", description="`spem COMMAND --help` says more"
    )
    for name, function in _COMMANDS.items():
        summary = str(function.__doc__).partition("\n")[0]
        shared = _find_shared(name)
        positional = _POSITIONAL.get(name, "RUN " if shared is Trained else "")
        usage = f"spem {name} {positional}[flags]"
        parser = Parser(usage=usage, description=summary)
        flags: dict[str, Any] = {"as_group": False, "as_positional": True}
        if shared:
            title = "recipe keys: each replaces that of the recipe"
            group = parser.add_argument_group(title) if shared is Recipe else parser
            skip = {"import_", *_LEFT_OUT.get(name, ())}
            group.add_class_arguments(shared, **flags, skip=skip)
        parser.add_function_arguments(function, **flags, skip={1} if shared else set())
        about = "Python file that registers gates or networks; it is run. May be repeated."
        parser.add_argument("--import", action="append", metavar="FILE", help=about)
        subcommands.add_subcommand(name, parser, help=summary)
    return top
