"""What ends a command with one line on stderr, and the words of such lines."""

import difflib
from collections.abc import Iterable

import yaml


class UserError(Exception):
    """A mistake of the user's making: one line on stderr naming the file or key and the way out, exit code 2."""


class NothingRestored(Exception):
    """Every restoration of a sweep failed: one line on stderr, exit code 1."""


def suggestion(name: str, known: Iterable[object]) -> str:
    """The end of a message about a name that is not `known`: the nearest one that is, else all of them, if any."""
    names = sorted(map(str, known))
    if not names:
        return ", of which there are none here"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def first_line(error: Exception) -> str:
    """What an error of a library's says, without its details."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).strip().split("\n")[0]
