"""Flags from signatures: jsonargparse with the habits of this field, and errors in one line."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, get_args, get_origin

from spem._extras import needs_extra
from spem._messages import unknown

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
    print("spem: error:", " ".join(message.split()), file=sys.stderr)
    return 2


class _HelpFormatter(DefaultHelpFormatter):
    """Placeholders say the type, so the remarks in brackets that jsonargparse adds can go."""

    def _get_help_string(self, action: Any) -> str:
        return action.help or ""

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
        `Sequence[str]` a flag of several words.
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
        flags = [name.replace("_", "-") for name in names if not name.endswith("+")]
        return super().add_argument(*flags, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with one line; jsonargparse prints the usage and each Python type that it tried."""
        flags = {flag: a for flag, a in self._option_string_actions.items() if flag[2:5] != "no-"}
        if message.startswith("unrecognized arguments: -"):
            message = str(unknown("flag", message.split()[2].partition("=")[0], flags))
        elif "arguments are required" in message:  # named as `predict.run`
            message = " ".join(word.rpartition(".")[2] for word in message.split())
        elif message.startswith("Parser key"):  # the exceptions keep key and value in the text only
            key, value = message.split('"')[1], message.rpartition("alue: ")[2]
            if action := flags.get(flag := "--" + key.replace("_", "-")):
                allowed = action.metavar or _placeholder(_hint(action))
                message = f"{flag} must be {allowed}, got {value!r}"
        sys.exit(fail(message))


def _hint(action: Any) -> Any:
    return getattr(action, "_typehint", action.type)


def _strip(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _placeholder(hint: Any) -> str:
    hint = _strip(hint)
    if get_origin(hint) is list:
        return f"[{_placeholder(*get_args(hint))},...]"
    if type(None) in get_args(hint) or bool in get_args(hint):
        return _placeholder(get_args(hint)[0])
    return (get_origin(hint) or hint).__name__.upper()
