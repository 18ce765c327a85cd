"""How a command is told to stop: one signal is acknowledged at once and obeyed within seconds, a second one ends it at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130  # exit status
_PATIENCE = 10.0  # seconds after which a command that has nothing to save is ended, deep in a library as it may be
_GRACE = 3.0  # seconds that a batch or an evaluation may still take after a signal
_SAME = 1.0  # seconds within which a second signal is torchrun's copy of the first
_heard: list[float] = []  # when each signal came, since the outermost of the contexts below was entered
_watches = 0
_reminding = threading.Event()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM is what Ctrl-C is: a KeyboardInterrupt. Processes that are forked within end at once."""
    if not _in_main_thread():
        yield
        return
    mine = os.getpid()

    def tell(number: int, _: object) -> None:
        if os.getpid() != mine:
            os._exit(128 + number)
        end_workers()
        raise KeyboardInterrupt

    with _watched("stopping", _PATIENCE), _handled(tell):
        yield


class Stop:
    """Whether a run was told to stop. A signal lets it end its step, and save; `at_once` is for what can be left any time."""

    def __init__(self) -> None:
        self._told, self._waits = False, False
        self.reminder = threading.Timer(_GRACE, _remind)
        self.reminder.daemon = True

    def is_set(self) -> bool:
        return self._told

    @contextmanager
    def at_once(self, when: bool = True) -> Iterator[None]:
        """Within, where `when`, what is not done a few seconds after a signal is left: KeyboardInterrupt."""
        self._waits = when
        try:
            yield
        finally:
            self._waits = False

    def tell(self) -> None:
        """First of a signal; then, of what it has not ended since."""
        if not self._told:
            self._told = True
            self.reminder.start()
        elif self._waits or os.name != "posix":  # elsewhere no thread ends the process
            end_workers()
            raise KeyboardInterrupt


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """What Ctrl-C or SIGTERM tells; a second one ends the process at once."""
    stop, mine = Stop(), os.getpid()
    if not _in_main_thread():  # only there can signals be handled
        yield stop
        return

    def tell(number: int, _: object) -> None:
        if os.getpid() != mine:  # a data worker, forked with this handler: it must end when told to
            os._exit(128 + number)
        stop.tell()

    with _watched("stopping as soon as this step is done and saved"), _handled(tell):
        try:
            yield stop
        finally:
            stop.reminder.cancel()


def end_workers() -> None:
    """Kills the processes that load data: a parent that stops would wait for what they are at."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _remind() -> None:
    """Calls the main thread's handler again, also out of a system call that it waits in."""
    if _watches:
        _reminding.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled(tell) -> Iterator[None]:
    before = {number: signal.signal(number, tell) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(what: str, patience: float | None = None) -> Iterator[None]:
    """Says `what` is done as soon as a signal comes, and at a second one, or after so many seconds, ends the process. A thread does
    it, which Python's own handlers, run by the main thread between two of its instructions, do not wait for.
    """
    global _watches
    if os.name != "posix":  # elsewhere this takes sockets
        yield
        return
    if not _watches:
        _heard.clear()
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(read, what, patience), daemon=True)
    watch.start()
    _watches += 1
    try:
        yield
    finally:
        _watches -= 1
        signal.set_wakeup_fd(before)
        os.write(write, b"\0")  # the end, also where forked processes hold this pipe
        watch.join()
        os.close(read)
        os.close(write)


def _watch(read: int, what: str, patience: float | None) -> None:
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
            copy = int(os.environ.get("WORLD_SIZE", "1")) > 1 and _heard and now - _heard[-1] < _SAME
            if _heard and not copy:
                _end_at_once()
            elif not copy:
                _say(f"diptych: {signal.Signals(number).name}: {what}; a second one ends it at once")
            _heard.append(now)
            deadline = None if patience is None else now + patience


def _end_at_once() -> None:
    _say("diptych: ended")
    end_workers()
    os._exit(_INTERRUPTED)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be listening any more
        os.write(2, f"{line}\n".encode())


def _forked() -> None:
    """A forked process that gets a signal must not tell it to its parent's thread."""
    if _watches and _in_main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
