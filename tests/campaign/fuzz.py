"""Runs one reader of the table on seeded mutations of its valid inputs: python -m tests.campaign.fuzz READER --inputs 500 --seed 0 --out FILE.

Every input must give a value or raise one of the reader's own errors, within SECONDS of processor time and MEMORY
more than before, run no code (a canary file, and Python's audit events), and open nothing outside its own folder.
Inputs are read in a child process; if it dies, its current input has failed, and another child continues with
the next input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from tests.campaign.mutations import CANARY, mutated
from tests.campaign.readers import READERS, Reader

SECONDS = 10  # processor time for one input
MEMORY = 1 << 30  # bytes more than before the input
ADDRESSES = 8 << 30  # bytes of address space more than before; larger allocations fail
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "socket.connect", "socket.bind", "pickle.find_class", "webbrowser.")  # fmt: skip
WRITES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.",
)
READABLE = (
    sys.prefix,
    sys.base_prefix,
    str(Path(__file__).parents[2] / "src"),
    "/proc",
    "/sys",
    "/dev",
    "/usr",
    "/lib",
)


class Watch:
    """Records, by Python's audit events, executed code and opened files outside `folder`. It cannot be removed."""

    def __init__(self, folder: Path):
        self.folder, self.events = os.path.realpath(folder), list[str]()
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            self.events.append(f"{event} {str(arguments)[:200]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path, mode, flags = arguments
            writes = bool(set(str(mode)) & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not self._inside(path, () if writes else READABLE) and os.fsdecode(path) != os.devnull:
                self.events.append(f"open {path!r:.200} {mode}")
        elif event.startswith(WRITES) and isinstance(arguments[0], str | bytes) and not self._inside(arguments[0], ()):
            self.events.append(f"{event} {arguments[0]!r:.200}")

    def _inside(self, path: str | bytes, others: tuple[str, ...]) -> bool:
        try:
            real = os.path.realpath(os.fsdecode(path))
        except ValueError:  # a NUL in the path: the system cannot open it
            return True
        return any(real == folder or real.startswith(folder + os.sep) for folder in (self.folder, *others))


def status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def in_child(reader: Reader, workspace: Path, seed: int, numbers: range, pipe: int) -> None:
    """Reads inputs in turn; writes a line of JSON before and after each."""
    folder = workspace / "case"
    os.chdir(folder)
    os.environ |= {"DIPTYCH_CACHE": str(folder / "cache"), "HOME": str(folder)}
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    most = status("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(folder)

    def tell(**line: Any) -> None:
        os.write(pipe, (json.dumps(line) + "\n").encode())

    for number in numbers:
        tell(number=number)
        watch.events.clear()
        path = reader.place(folder, input_of(reader, seed, number))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
        watch.events.clear()
        before, began = status("VmRSS"), time.process_time()
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        why = ""
        try:
            reader.read(path)
            outcome = "values"
        except reader.errors:
            outcome = "refused"
        except BaseException as error:
            outcome, why = "failed", f"{type(error).__name__}: {error}"[:300]
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown, caught = status("VmHWM") - before, list(watch.events)
        if grown > MEMORY:
            outcome, why = "failed", f"took {grown >> 20} MiB; {why}"
        if (folder / CANARY).exists() or (workspace / CANARY).exists():
            outcome, why = "failed", f"code was run; {why}"
        if caught:
            outcome, why = "failed", f"{caught[:3]}; {why}"
        tell(outcome=outcome, why=why, seconds=time.process_time() - began, grown=grown)


def input_of(reader: Reader, seed: int, number: int) -> bytes:
    """The input of that number: the same in every process."""
    if number < len(reader.crafted):
        return reader.crafted[number]
    draw = random.Random(f"{seed}/{reader.name}/{number}")
    data = mutated(draw.choice(reader.seeds), reader.seeds, reader.tokens, draw)
    return reader.seal(data) if reader.seal and draw.random() < 0.7 else data


def fork(work: Callable[[int], None]) -> tuple[int, Any]:
    """A child process that runs `work` and writes to a pipe; its pid and the pipe's read end."""
    out, into = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            work(into)
        finally:
            os._exit(0)
    os.close(into)
    return child, os.fdopen(out)


def campaign(reader: Reader, workspace: Path, seed: int, numbers: range, until: float) -> dict[str, Any]:
    """The outcomes of all inputs, or of those for which there was time."""
    outcomes, failures = Counter[str](), list[dict[str, Any]]()
    slowest, largest, done, number = 0.0, 0, numbers.start, numbers.start
    while done < numbers.stop and time.monotonic() < until:
        rest = range(done, numbers.stop)
        child, lines = fork(lambda into, rest=rest: in_child(reader, workspace, seed, rest, into))
        with lines:
            for line in map(json.loads, lines):
                if "number" in line:
                    number = line["number"]
                    if time.monotonic() > until:
                        os.kill(child, signal.SIGKILL)
                        break
                    continue
                outcomes[line["outcome"]] += 1
                slowest, largest, done = max(slowest, line["seconds"]), max(largest, line["grown"]), number + 1
                if line["outcome"] == "failed":
                    failures.append({"number": number, "why": line["why"]})
        _, exit_status = os.waitpid(child, 0)
        if done <= number < numbers.stop and time.monotonic() < until:
            outcomes["failed"] += 1
            failures.append({"number": number, "why": f"the process ended: {died(exit_status)}"})
            done = number + 1
    counts = {name: outcomes[name] for name in ("values", "refused", "failed")}
    return {
        "reader": reader.name, "seed": seed, "date": f"{date.today()}", "machine": machine(), "inputs": sum(counts.values()), **counts,
        "slowest": round(slowest, 2), "largest": largest, "failures": failures[:20],
    }  # fmt: skip


def machine() -> str:
    """The versions that the numbers depend on."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def died(exit_status: int) -> str:
    if not os.WIFSIGNALED(exit_status):
        return f"status {os.waitstatus_to_exitcode(exit_status)}"
    name = signal.Signals(os.WTERMSIG(exit_status)).name
    return f"{name}, more than {SECONDS} s of processor time" if name == "SIGPROF" else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--out", type=Path, help="where the counts go as JSON")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        workspace = Path(made)
        (workspace / "case").mkdir()
        reader = replace(READERS[args.reader](workspace / "case"), name=args.reader)
        (workspace / "secret.jpg").write_bytes(reader.seeds[0])  # a file that no reader may open
        for data in reader.seeds:
            reader.read(reader.place(workspace / "case", data))  # a valid input must be read, else nothing is tested
        numbers = range(args.first, args.first + args.inputs)
        record = campaign(reader, workspace, args.seed, numbers, began + args.seconds)
    record["seconds"] = round(time.monotonic() - began, 1)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))
    sys.exit(1 if record["failed"] else 0)


if __name__ == "__main__":
    main()
