"""What the commands on photographs share: their positional arguments, and the line that they end with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from diptych.cli.errors import UsageError
from diptych.utils.terminal import echo

if TYPE_CHECKING:
    from diptych.predict.photos import Summary


def pop_run_and_images(words: list[str], usage: str, needed: bool = True) -> tuple[str, list[str]]:
    """The run and the photographs. Raises UsageError if one is missing, or empty as an unset shell variable is."""
    if not words or (needed and len(words) == 1):
        raise UsageError(f"no {'photographs' if words else 'run'} given: diptych {usage}")
    if "" in words:
        raise UsageError(f"an argument is empty (an unset variable of the shell?): diptych {usage}")
    return words[0], words[1:]


def pop_text(words: list[str], name: str, usage: str) -> str:
    """The last argument, a question or text. Raises UsageError if there is none, or it is the path of a file or folder."""
    if len(words) < 3:
        raise UsageError(f"no {name} given after the run and the photographs: diptych {usage}")
    text = words.pop()
    if os.path.exists(text):
        raise UsageError(f"the last argument must be the {name}, and {text!r} is a file or folder: diptych {usage}")
    if not text.strip():
        raise UsageError(f"the {name} is empty: diptych {usage}")
    return text


def print_summary(summary: Summary, out: str, what: str = "photograph") -> None:
    """Prints the numbers of items done, and those that cannot be read; to standard error if the rows were printed."""
    earlier = f", {summary.earlier:,} of them earlier" if summary.earlier else ""
    earlier += f", {summary.retried:,} tried again" if summary.retried else ""
    if out:
        done, number = summary.number - len(summary.unreadable), f"{summary.number:,}"
        of_all = f"{done:,} of {number}" if summary.unreadable else number
        echo(f"{out}: {of_all} {what}{'s' * (summary.number != 1)}{earlier}")
    for name, why in summary.unreadable[:5]:
        echo(f"cannot be read: {name}: {why}", error=True)
    if more := len(summary.unreadable[5:]):
        echo(f"and {more:,} more, whose rows have an error", error=True)
