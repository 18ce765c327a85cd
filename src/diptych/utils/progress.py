"""Progress of long work: a bar with the time left on a terminal, else a line every half minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diptych.utils.terminal import echo

T = TypeVar("T")
INTERVAL = 30.0  # seconds between lines


def track(
    items: Iterable[T], description: str, total: int, completed: int = 0, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """Yields the items, with their progress on standard error: "answering: 300 of 1200, 0:04:30 left".

    Args:
        total: the number of all items, of which `completed` were done before and are not among `items`.
        clock: the time in seconds.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _with_lines(items, description, total, completed, clock)
        return
    columns = TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn()
    # rich would print to its own console, which is standard error, what goes to standard output
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, redirect_stdout=False
    ) as progress:
        task = progress.add_task(description, total=total, completed=completed)
        for item in items:
            yield item
            progress.advance(task)


def _with_lines(
    items: Iterable[T], description: str, total: int, completed: int, clock: Callable[[], float]
) -> Iterator[T]:
    """Yields the items; a line every INTERVAL seconds says how many are done, and the time left at the mean speed."""
    began = said = clock()
    for done, item in enumerate(items, 1):
        yield item
        now = clock()
        if now - said >= INTERVAL:
            said = now
            left = timedelta(seconds=round((now - began) / done * max(0, total - completed - done)))
            echo(f"{description}: {completed + done} of {total}, {left} left", error=True)
