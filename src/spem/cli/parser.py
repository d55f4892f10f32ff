"""Flags from signatures: jsonargparse with the habits of this field, and errors in one line."""

import sys
from argparse import PARSER, SUPPRESS, Action
from collections.abc import Mapping, Sequence
from inspect import isclass, signature
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from spem._extras import needs_extra
from spem._messages import printable, shorten, unknown

with needs_extra("train"):
    from jsonargparse import (
        ActionYesNo,
        ArgumentParser,
        DefaultHelpFormatter,
        get_loader,
        set_loader,
    )
    from yaml import YAMLError


def _read(text: str) -> Any:
    return None if text == "none" else get_loader("yaml")(text)


set_loader("recipe", _read, exceptions=(YAMLError,))


def fail(message: str) -> int:
    """Print on one line of stderr what is wrong with the input, and return the exit code for it."""
    print("spem: error:", printable(" ".join(message.split())), file=sys.stderr)
    return 2


class _HelpFormatter(DefaultHelpFormatter):
    """Placeholders say the type, and `add_flags` the default; jsonargparse's remarks can go."""

    def _get_help_string(self, action: Any) -> str:
        return action.help or ""

    def _format_action_invocation(self, action: Action) -> str:
        if action.nargs == PARSER:  # the commands, which have a heading already
            return "`spem COMMAND --help` says more"
        return super()._format_action_invocation(action)

    def _get_default_metavar_for_optional(self, action: Any) -> str:
        hint = _hint(action)
        return _placeholder(hint) if hint else super()._get_default_metavar_for_optional(action)


class Parser(ArgumentParser):
    """A parser of `--batch-size 8`, `--flip`, `--no-flip` and of several words at the end."""

    def __init__(self, **options: Any):
        style = {"formatter_class": _HelpFormatter, "parser_mode": "recipe"}
        style["allow_abbrev"] = False  # --seed would be taken for --seeds
        super().__init__(**style | options)

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Add the flag that jsonargparse derives from a parameter; see argparse.

        A parameter of type `str | bool` becomes a flag whose value may be left out, one of type
        `Sequence[str]` a flag of several words. A required parameter of type `tuple[str, ...]`
        takes any number of words.
        """
        hint = _strip(options.get("type") or getattr(options.get("action"), "_typehint", None))
        if hint is bool:
            options["action"] = ActionYesNo(no_prefix="no-")
            del options["type"]
        elif {str, bool} <= {*get_args(hint)}:
            options |= {"nargs": "?", "const": True}
        elif hint == Sequence[str] or (hint == list[str] and not names[0].startswith("-")):
            options |= {"nargs": "+", "type": str}
            options.pop("action", None)
        elif hint == tuple[str, ...] and not names[0].startswith("-"):
            options |= {"nargs": "*", "type": str}
            options.pop("action", None)
        # A word of Python's, as `class_`, is a flag as it is.
        flags = [name.rstrip("_").replace("_", "-") for name in names if not name.endswith("+")]
        if names[0].startswith("--") and names[0].endswith("_"):
            options["dest"] = names[0].removeprefix("--")
        return super().add_argument(*flags, **options)

    def add_flags(
        self,
        source: Any,
        names: Sequence[str],
        group: Any = None,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        """Add flags for parameters of a function or a class, with the defaults in their help.

        Args:
            source: the function or class.
            names: of the parameters.
            group: of arguments; None: the options of the parser.
            defaults: the text for each parameter; None: what the signature says.
        """
        left_out = set[str | int](signature(source).parameters).difference(names)
        place = self if group is None else group
        add = place.add_class_arguments if isclass(source) else place.add_function_arguments
        add(source, as_group=False, as_positional=True, skip=left_out)
        for action in self._actions:
            if action.dest in names:
                own = "" if action.default in (None, SUPPRESS, ()) else say(action.default)
                text = own if defaults is None else defaults[action.dest]
                explained = (action.help or "").removesuffix(".")
                action.help = f"{explained} (default: {text})" if text else explained

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with one line; jsonargparse prints the usage and each Python type that it tried."""
        flags = {
            flag: action
            for flag, action in self._option_string_actions.items()
            if flag[:2] == "--" and flag[2:5] != "no-" and action.help is not SUPPRESS
        }
        command = f"spem {self.prog.rpartition(' ')[2]} --help".replace("spem spem", "spem")
        if message.startswith("unrecognized arguments: -"):
            message = str(unknown("flag", message.split()[2].partition("=")[0], flags, command))
        elif message.startswith("unrecognized arguments:"):
            message = _describe_stray(message.split()[2], list(self.args), flags, command)
        elif "ignored explicit argument" in message:
            message = _describe_switch(message.split()[1].partition("/")[0].rstrip(":"))
        elif "invalid choice" in message and self._subcommands_action is not None:
            commands = self._subcommands_action.choices
            message = str(unknown("command", message.split("'")[1], commands, command))
        elif "arguments are required" in message:  # named as `predict.run`
            said, _, needed = message.rpartition(": ")
            message = f"{said}: {', '.join(self._name(key) for key in needed.split(', '))}"
        elif message.startswith("Parser key"):  # the exceptions keep key and value in the text only
            key, value = message.split('"')[1], message.rpartition("alue: ")[2]
            if action := flags.get(flag := "--" + key.replace("_", "-")):
                allowed = action.metavar or _placeholder(_hint(action))
                if allowed == "DICT":
                    allowed = "a mapping like '{name: value}', with a space after each colon"
                message = f"{flag} must be {allowed}, got {shorten(value)}"
        sys.exit(fail(message))

    def _name(self, key: str) -> str:
        """Return what one writes for a key like `predict.run` or `compare.out`: run or --out."""
        command, _, name = key.rpartition(".")
        commands = self._subcommands_action.choices if self._subcommands_action else {}
        flag = f"--{name.replace('_', '-')}"
        known = commands[command]._option_string_actions if command in commands else {}
        return flag if flag in known else name


def _describe_stray(word: str, given: list[str], flags: Mapping[str, Any], command: str) -> str:
    """Say of a word that nothing takes whether it stands behind a flag without a value."""
    before = given[given.index(word) - 1] if word in given[1:] else ""
    if isinstance(flags.get(before), ActionYesNo):
        return _describe_switch(before)
    return f"{shorten(word)} is neither a flag nor the value of one; `{command}` lists the flags"


def _describe_switch(flag: str) -> str:
    return f"{flag} takes no value: write {flag}, or --no-{flag[2:]} for the opposite"


_SHELLS = ("bash", "zsh", "tcsh")


class CompletionAction(Action):
    """Prints what a shell needs to complete commands and flags."""

    def __init__(self, option_strings: Sequence[str], dest: str):
        text = (
            'print the completion of a shell: in ~/.bashrc, eval "$(spem --print-completion bash)"'
        )
        shells = f"{{{','.join(_SHELLS)}}}"
        super().__init__(option_strings, SUPPRESS, type=str, metavar=shells, help=text)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Print the script and exit."""
        if values not in _SHELLS:
            parser.error(
                f"--print-completion must be one of {', '.join(_SHELLS)}, got {shorten(values)}"
            )
        with needs_extra("train"):
            import shtab  # noqa: F401
        sys.stdout.write(parser.get_completion_script(f"shtab-{values}"))
        sys.exit(0)


def say(value: Any) -> str:
    """Return a value of a flag as one writes it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {each}' for key, each in value.items())}}}"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _hint(action: Any) -> Any:
    return getattr(action, "_typehint", action.type)


def _strip(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _placeholder(hint: Any) -> str:
    hint = _strip(hint)
    if get_origin(hint) is list:
        return f"[{_placeholder(*get_args(hint))},...]"
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, get_args(hint)))}}}"
    if get_origin(hint) in (Union, UnionType):
        first, *others = get_args(hint)
        words = [
            word for other in others if get_origin(other) is Literal for word in get_args(other)
        ]
        return "|".join([_placeholder(first), *words])
    return (get_origin(hint) or hint).__name__.upper()
