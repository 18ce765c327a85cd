"""Output to the terminal with control characters escaped.

Names in tars, keys of checkpoints and captions are printed in messages; without escaping, control characters in them
could move the cursor, hide, reorder or colour text.
"""

from __future__ import annotations

import os
import sys
import traceback
import unicodedata
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

MAX_MESSAGE_CHARS = 2**20  # of one message
MAX_ERROR_CHARS = 4000  # of a one-line error: a key in it may be megabytes long
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, direction marks, lone surrogates, line and paragraph separators
_BROKEN_PIPE = 141  # exit status of a process that SIGPIPE ends
_JOINERS = "\u200c\u200d"  # needed within words of Persian and Hindi, and within emoji


def printable(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    r"""The text with control and direction characters escaped (``\x1b``, ``\u202e``), except for line ends and tabs.

    If it is longer than `max_chars`, the middle is cut out.
    """
    if len(text) > max_chars:
        text = f"{text[: max_chars // 2]} ... ({len(text)} characters) ... {text[-max_chars // 2 :]}"
    return text if text.isprintable() else "".join(_escape(c) if _is_control(c) else c for c in text)


def _is_control(c: str) -> bool:
    return not c.isprintable() and c not in "\n\t" + _JOINERS and unicodedata.category(c) in _ESCAPED


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


def plain(text: str) -> Text:
    """Text for a cell or title of a rich table, with markup and control characters disabled."""
    from rich.text import Text

    return Text(printable(text))


def echo(text: object = "", error: bool = False) -> None:
    """Prints a message, escaped and flushed, to standard output, or to standard error if it is an `error`.

    All text is printed by this function, except for tables, whose text from files goes through `plain`. Ends the
    process, without a message, if the reader of the output has ended, as `head` does.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(printable(str(text)), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what Python itself flushes at its end
        sys.exit(_BROKEN_PIPE)


def echo_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback, escaped; a replacement for ``sys.excepthook``."""
    echo("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True)
