"""Text for the terminal, in which nothing from a file can move the cursor, hide or reorder what stands there, or colour it.

Names in tars, keys of checkpoints and captions reach messages; a terminal obeys the control characters in them.
"""

from __future__ import annotations

import sys
import traceback
import unicodedata
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

MOST_SHOWN = 2**20  # characters of one message
MOST_REFUSAL = 4000  # of one line: a key may be megabytes long
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, direction marks, lone surrogates, other ends of lines
_JOINERS = "\u200c\u200d"  # within words of Persian and Hindi, and within emoji


def printable(text: str, most: int = MOST_SHOWN) -> str:
    r"""The text with every control and direction character escaped (``\x1b``, ``\u202e``), but for line ends and tabs, and cut
    in the middle where it is longer than `most` characters.
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... ({len(text)} characters) ... {text[-most // 2 :]}"
    return text if text.isprintable() else "".join(_escape(c) if _is_control(c) else c for c in text)


def _is_control(c: str) -> bool:
    return not c.isprintable() and c not in "\n\t" + _JOINERS and unicodedata.category(c) in _ESCAPED


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


def plain(text: str) -> Text:
    """Text of a table's cell or title in which nothing is markup."""
    from rich.text import Text

    return Text(printable(text))


def echo(text: object = "", error: bool = False) -> None:
    """Prints a message at once, on standard error where it is an `error`: the only way in which text reaches the terminal,
    but for tables, of which what comes from files is `plain`.
    """
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def echo_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback, as ``sys.excepthook`` does."""
    echo("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True)
