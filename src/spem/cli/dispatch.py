"""From the words of a command to the call of its function."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from shlex import quote
from typing import Any

from spem import __version__
from spem._messages import describe_error, printable
from spem.cli.apply import evaluate, predict
from spem.cli.commands import (
    find_learning_rate,
    report,
    report_gates,
    search_placement,
    show_data,
    train,
)
from spem.cli.explain import explain_pictures
from spem.cli.gates import list_gates
from spem.cli.networks import list_models
from spem.cli.parser import CompletionAction, Parser, fail, say
from spem.cli.trained import Trained, TrainedRuns
from spem.compare.bench import bench
from spem.compare.comparison import compare
from spem.train.recipe import AXES, Recipe
from spem.train.recipe_files import load_recipe, recipe_names

# No function has a name of `spem`'s: jsonargparse would look there for it, and import PyTorch.
_COMMANDS: dict[str, Callable[..., int | None]] = {
    "train": train,
    "find-lr": find_learning_rate,
    "data": show_data,
    "evaluate": evaluate,
    "predict": predict,
    "explain": explain_pictures,
    "models": list_models,
    "gates": list_gates,
    "search-placement": search_placement,
    "gate-report": report_gates,
    "compare": compare,
    "report": report,
    "bench": bench,
}
# Flags that several commands share; they become the first argument of the functions that have it.
_SHARED: dict[str, type] = {"recipe_keys": Recipe, "trained": Trained, "runs": TrainedRuns}
# The keys of a recipe that decide what its training images are.
_DATA_KEYS = ("data_dir", "download", "image_size", "validation", "mean", "std", "crop", "flip")
_DATA_KEYS += ("batch_size", "seed", "model", "interpolation", "crop_ratio", "folds", "fold")
_LEFT_OUT: dict[str, Sequence[str]] = {
    "compare": AXES,
    "data": [key for key in Recipe.__dataclass_fields__ if key not in _DATA_KEYS],
    "predict": ("data", "data_dir", "download"),
}
_POSITIONAL = {
    "predict": "RUN IMAGE ... ",
    "explain": "RUN [IMAGE ...] ",
    "evaluate": "RUN ... ",
    "report": "FOLDER ",
}
_POSITIONAL |= {"data": "FOLDER ", "models": "[PATTERN ...] "}
# What most runs are started with; the help of `train` begins with them.
_USUAL = ("data", "model", "gate", "weights", "config", "epochs", "batch_size", "lr")
_USUAL += ("out", "resume")


def run_command(argv: Sequence[str] | None) -> int:
    """Run one command and return the exit code; see `spem.cli.main`."""
    words = sys.argv[1:] if argv is None else argv
    if not words:
        _parser().print_help()
        return 0
    given = _parser().parse_args(words, defaults=False)
    name, values = given.subcommand, given[given.subcommand].as_dict()
    try:
        _refuse_empty(values)
        _import_files(name, values)
        return _COMMANDS[name](*_take_shared(name, values), **values) or 0
    except BrokenPipeError:  # who reads the output, `head` for example, has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (for the interpreter's last flush)
        return 141
    except (ValueError, OSError, ImportError) as error:
        return fail(describe_error(error))
    except RuntimeError as error:
        from spem.train.failures import describe_failure

        if (sentence := describe_failure(error)) is None:
            raise
        return fail(sentence)
    except KeyboardInterrupt as interrupt:
        print("\nspem: interrupted", file=sys.stderr)
        if name == "search-placement":
            print("search again, with --overwrite or another --out", file=sys.stderr)
        elif name == "compare":
            print("the same command continues", file=sys.stderr)
        elif folder := getattr(interrupt, "folder", None):
            words = printable(quote(str(folder)))
            print(f"continue with: spem train --resume {words}", file=sys.stderr)
        return getattr(interrupt, "exit_code", 130)


def _refuse_empty(values: dict[str, Any]) -> None:
    """Raise ValueError at an empty word: of a shell's variable without a value, not this folder."""
    for key, value in values.items():
        if value == "" or (isinstance(value, list | tuple) and "" in value):
            raise ValueError(f"the value of {key.replace('_', '-')} is empty")


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
    flags = [*_shared_flags(name), "import"]
    given = {flag: values.pop(flag) for flag in flags if flag in values}
    if values.get("print_config"):
        return [given]
    from spem.train.devices import keep_freed_memory

    keep_freed_memory()  # all of them compute
    return [given if shared is Recipe else shared(**given)]


def _find_shared(name: str) -> type | None:
    return _SHARED.get(next(iter(signature(_COMMANDS[name]).parameters), ""))


def _shared_flags(name: str) -> list[str]:
    shared = _find_shared(name)
    left_out = ("import_", *_LEFT_OUT.get(name, ()))  # every command has --import
    return [flag for flag in signature(shared).parameters if flag not in left_out] if shared else []


def _parser() -> Parser:
    top = Parser(
        prog="spem",
        usage="spem COMMAND ...",
        description="Channel attention for image recognition.",
        version=__version__,
    )
    top.add_argument("--print-completion", action=CompletionAction)
    subcommands = top.add_subcommands(title="commands", description=None)
    for name, function in _COMMANDS.items():
        summary = str(function.__doc__).partition("\n")[0]
        positional = _POSITIONAL.get(name, "RUN " if _find_shared(name) is Trained else "")
        parser = Parser(usage=f"spem {name} {positional}[flags]", description=summary)
        _add_flags(parser, name)
        about = "Python file that registers gates or networks; it is run. May be repeated."
        parser.add_argument("--import", action="append", metavar="FILE", help=about)
        subcommands.add_subcommand(name, parser, help=summary)
    return top


def _add_flags(parser: Parser, name: str) -> None:
    """Add the flags of a command: those used most, those of a recipe, those of its function."""
    function, shared, flags = _COMMANDS[name], _find_shared(name), _shared_flags(name)
    own = [flag for flag in signature(function).parameters if flag not in _SHARED]
    if function is train:
        group = parser.add_argument_group("flags used most")
        # Above the group of `--help`.
        parser._action_groups = [group, *parser._action_groups[:-1]]
        parser.add_flags(
            Recipe, [flag for flag in flags if flag in _USUAL], group, _recipe_defaults()
        )
        parser.add_flags(train, [flag for flag in own if flag in _USUAL], group)
        flags, own = ([each for each in some if each not in _USUAL] for some in (flags, own))
    if shared is Recipe:
        group = parser.add_argument_group("recipe keys: each replaces that of the recipe")
        parser.add_flags(Recipe, flags, group, _recipe_defaults())
    elif shared:
        parser.add_flags(shared, flags)
    parser.add_flags(function, own)


@cache
def _recipe_defaults() -> dict[str, str]:
    """Return the default of each recipe key for the help: cifar_quick's, and what differs."""
    recipes = {name: vars(load_recipe(name)) for name in recipe_names()}
    usual = recipes.pop("cifar_quick")
    texts = {}
    for key, value in usual.items():
        others = [(name, recipe[key]) for name, recipe in recipes.items() if recipe[key] != value]
        texts[key] = "; ".join([say(value), *(f"{name}: {say(other)}" for name, other in others)])
    return texts
