"""From the words of a command to the call of its function."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from shlex import quote

from spem import __version__
from spem.cli import commands
from spem.cli.parser import Parser, fail
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
# The commands whose flags include the keys of a recipe, and the keys that each leaves out.
_WITH_RECIPE: dict[str, Collection[str]] = {"train": (), "search-placement": (), "compare": AXES}
_POSITIONAL = {"predict": "RUN IMAGE ... ", "report": "FOLDER "}
_POSITIONAL |= dict.fromkeys(("gate-report", "evaluate"), "RUN ")


def run_command(argv: Sequence[str] | None) -> int:
    """Run one command and return the exit code; see `spem.cli.main`."""
    given = _parser().parse_args(argv, defaults=False)
    values = given[given.subcommand].as_dict()
    if given.subcommand in _WITH_RECIPE:
        keys = [key for key in _recipe_keys(given.subcommand) if key in values]
        values["recipe_keys"] = {key: values.pop(key) for key in keys}
    try:
        return _COMMANDS[given.subcommand](**values) or 0
    except (ValueError, OSError, ImportError) as error:
        return fail(str(error))
    except KeyboardInterrupt as interrupt:
        print("\nspem: interrupted", file=sys.stderr)
        if given.subcommand == "search-placement":
            print("search again, with --overwrite or another --out", file=sys.stderr)
        elif given.subcommand == "compare":
            print("the same command continues", file=sys.stderr)
        elif folder := getattr(interrupt, "folder", None):
            print(f"continue with: spem train --resume {quote(str(folder))}", file=sys.stderr)
        return 130


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
        parser.add_function_arguments(
            function, as_group=False, as_positional=True, skip={"recipe_keys"}
        )
        if name in _WITH_RECIPE:
            keys = parser.add_argument_group("recipe keys: each replaces that of the recipe")
            keys.add_class_arguments(Recipe, as_group=False, skip=set(_WITH_RECIPE[name]))
        subcommands.add_subcommand(name, parser, help=summary)
    return top


def _recipe_keys(command: str) -> list[str]:
    return [f.name for f in fields(Recipe) if f.name not in _WITH_RECIPE[command]]
