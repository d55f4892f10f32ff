"""From the words of a command to the call of its function."""

import sys
from collections.abc import Collection, Sequence
from inspect import signature
from shlex import quote
from typing import Any

from spem import __version__
from spem.cli import commands
from spem.cli.parser import Parser, fail
from spem.cli.trained import Trained
from spem.compare.bench import bench
from spem.compare.comparison import compare
from spem.train.recipe import AXES, Recipe

_COMMANDS = {
    "train": commands.train,
    "evaluate": commands.evaluate,
    "predict": commands.predict,
    "gates": commands.gates,
    "search-placement": commands.search_placement,
    "gate-report": commands.gate_report,
    "compare": compare,
    "report": commands.report,
    "bench": bench,
}
# The commands that share flags, which become the first argument of their function: the keys of a
# recipe, or a trained network.
_SHARED: dict[str, type] = dict.fromkeys(("train", "search-placement", "compare"), Recipe)
_SHARED |= dict.fromkeys(("evaluate", "predict", "gate-report"), Trained)
_LEFT_OUT: dict[str, Collection[str]] = {
    "compare": AXES,
    "predict": ("data", "data_dir", "download"),
}
_POSITIONAL = {"predict": "RUN IMAGE ... ", "report": "FOLDER "}
_POSITIONAL |= dict.fromkeys(("gate-report", "evaluate"), "RUN ")


def run_command(argv: Sequence[str] | None) -> int:
    """Run one command and return the exit code; see `spem.cli.main`."""
    given = _parser().parse_args(argv, defaults=False)
    name, values = given.subcommand, given[given.subcommand].as_dict()
    try:
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


def _take_shared(name: str, values: dict[str, Any]) -> list[Any]:
    """Remove the shared flags from the values of a command, and return its first argument."""
    if name not in _SHARED:
        return []
    from spem.train.devices import keep_freed_memory

    keep_freed_memory()  # all of them compute
    flags = [f for f in signature(_SHARED[name]).parameters if f not in _LEFT_OUT.get(name, ())]
    shared = {flag: values.pop(flag) for flag in flags if flag in values}
    return [shared if _SHARED[name] is Recipe else Trained(**shared)]


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
        usage = f"spem {name} {_POSITIONAL.get(name, '')}[flags]"
        parser = Parser(usage=usage, description=summary)
        flags: dict[str, Any] = {"as_group": False, "as_positional": True}
        if shared := _SHARED.get(name):
            title = "recipe keys: each replaces that of the recipe"
            group = parser.add_argument_group(title) if shared is Recipe else parser
            group.add_class_arguments(shared, **flags, skip=set(_LEFT_OUT.get(name, ())))
        parser.add_function_arguments(function, **flags, skip={1} if shared else set())
        subcommands.add_subcommand(name, parser, help=summary)
    return top
