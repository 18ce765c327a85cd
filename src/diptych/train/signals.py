"""How a run is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM is what Ctrl-C is: a KeyboardInterrupt. Processes that are forked within end at once."""
    mine = os.getpid()

    def tell(number: int, _: object) -> None:
        if os.getpid() != mine:
            os._exit(128 + number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once."""
    told, mine = threading.Event(), os.getpid()

    def tell(number: int, _: object) -> None:
        if os.getpid() != mine:  # a data worker, forked with this handler: it must end when told to
            os._exit(128 + number)
        if told.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        told.set()

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield told
        return
    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
