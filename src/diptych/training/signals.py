"""Ctrl-C and SIGTERM: the first signal is acknowledged at once and obeyed within seconds; a second ends the process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # exit status
_PATIENCE = 10.0  # seconds after which a command without anything to save is ended, even inside a library call
_GRACE = 3.0  # seconds that a batch or an evaluation may take after a signal
_SAME = 1.0  # seconds within which a second signal is torchrun's copy of the first
_received: list[float] = []  # the times of signals since the outermost context below was entered
_watches = 0
_reminding = threading.Event()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt, as Ctrl-C does. Forked processes end at once."""
    if not _in_main_thread():
        yield
        return
    parent = os.getpid()

    def handler(number: int, _: object) -> None:
        if os.getpid() != parent:
            os._exit(128 + number)
        end_workers()
        raise KeyboardInterrupt

    with _watched("stopping", _PATIENCE), _handled(handler):
        yield


class StopRequest:
    """Whether a signal asked a training run to stop, which it does after the current step, saved.

    `interruptible` marks work that can be abandoned at any time.
    """

    def __init__(self) -> None:
        self._requested, self._interruptible = False, False
        self.reminder = threading.Timer(_GRACE, _remind)
        self.reminder.daemon = True

    def is_set(self) -> bool:
        return self._requested

    @contextmanager
    def interruptible(self, when: bool = True) -> Iterator[None]:
        """Within, if `when`, a KeyboardInterrupt ends work that is not done a few seconds after a signal."""
        self._interruptible = when
        try:
            yield
        finally:
            self._interruptible = False

    def receive(self) -> None:
        """Handles a signal: the first sets the request; the reminder, seconds later, ends interruptible work."""
        if not self._requested:
            self._requested = True
            self.reminder.start()
        elif self._interruptible or os.name != "posix":  # elsewhere no thread ends the process
            end_workers()
            raise KeyboardInterrupt


@contextmanager
def stop_signal() -> Iterator[StopRequest]:
    """Within, Ctrl-C or SIGTERM sets the StopRequest; a second signal ends the process at once."""
    stop, parent = StopRequest(), os.getpid()
    if not _in_main_thread():  # signals can only be handled in the main thread
        yield stop
        return

    def handler(number: int, _: object) -> None:
        if os.getpid() != parent:  # a data worker, forked with this handler: it must end at its first signal
            os._exit(128 + number)
        stop.receive()

    with _watched("stopping as soon as this step is done and saved"), _handled(handler):
        try:
            yield stop
        finally:
            stop.reminder.cancel()


def end_workers() -> None:
    """Kills the data-loading processes, whose current work a parent that stops would wait for."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _remind() -> None:
    """Calls the main thread's handler again, which also interrupts a blocking system call."""
    if _watches:
        _reminding.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def _watched(message: str, patience: float | None = None) -> Iterator[None]:
    """Prints `message` as soon as a signal arrives; ends the process at a second one, or after `patience` seconds.

    A thread does it, because Python's own handlers only run in the main thread, between two of its instructions.
    """
    global _watches
    if os.name != "posix":  # other systems need sockets instead of pipes
        yield
        return
    if not _watches:
        _received.clear()
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(read, message, patience), daemon=True)
    watch.start()
    _watches += 1
    try:
        yield
    finally:
        _watches -= 1
        signal.set_wakeup_fd(before)
        os.write(write, b"\0")  # ends the thread, even if forked processes keep this pipe open
        watch.join()
        os.close(read)
        os.close(write)


def _watch(read: int, message: str, patience: float | None) -> None:
    deadline = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([read], [], [], left)[0]:
            _end_at_once()
        for number in os.read(read, 64):
            if number == 0:
                return
            if number not in _NUMBERS:
                continue
            if _reminding.is_set():
                _reminding.clear()
                continue
            now = time.monotonic()
            copy = int(os.environ.get("WORLD_SIZE", "1")) > 1 and _received and now - _received[-1] < _SAME
            if _received and not copy:
                _end_at_once()
            elif not copy:
                _print(f"diptych: {signal.Signals(number).name}: {message}; a second one ends it at once")
            _received.append(now)
            deadline = None if patience is None else now + patience


def _end_at_once() -> None:
    _print("diptych: ended")
    end_workers()
    os._exit(INTERRUPTED)


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(2, f"{line}\n".encode())


def _after_fork() -> None:
    """Detaches a forked process from the pipe of its parent's thread, which its signals must not reach."""
    if _watches and _in_main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
