"""The work of an evaluation, divided into numbered parts: shared by the ranks, recorded, and continued later.

Rank r of `world` computes the parts r, r + world, …, and all ranks get all values, in order: the parts are the same for
any number of ranks, and so is the result. Values go to a file ``progress-RANK.jsonl`` in the evaluation's folder as they
come. An evaluation that was interrupted, and is started again with the same settings, model and data, reads them there
and computes the others only. Its metrics written, the files are removed.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diptych.training.distributed import Group
from diptych.utils.io import InvalidJSON, decode_json, naming_write_errors, schema_error
from diptych.utils.progress import track
from diptych.utils.terminal import echo

T = TypeVar("T")
FLUSH = 2.0  # seconds between writes: the most that a killed process loses
_FILES = "progress-*.jsonl"
_ROW = {"stage": str, "size": [int], "part": int, "value": object}


@dataclass
class _Recorded:
    """What an earlier process recorded: by stage its size and the values of its parts."""

    sizes: dict[str, list[int]] = field(default_factory=dict)
    values: dict[str, dict[int, Any]] = field(default_factory=dict)


class Session:
    """The ranks of an evaluation, and the file to which this rank appends values.

    Args:
        group: the ranks.
        folder: of the files; None: nothing is recorded.
        identity: what the values depend on, as JSON: the settings, and digests of model and data. It is called once
            there is something to write, or files of an earlier process to compare it with.
    """

    def __init__(self, group: Group, folder: Path | None = None, identity: Callable[[], Mapping[str, Any]] = dict):
        self.group, self.folder, self._identity = group, folder, identity
        self._file: TextIO | None = None
        self._lines: list[str] = []
        self._written = time.monotonic()
        self.recorded = group.gather(self._read() if group.main else _Recorded())[0]

    def values(
        self,
        stage: str,
        parts: Sequence[int],
        compute: Callable[[list[int]], Iterable[tuple[int, T]]],
        size: Sequence[int] = (),
        record: bool = True,
    ) -> list[T]:
        """The value of each part, in their order: recorded earlier, or computed by this rank or another.

        Args:
            stage: what is done, for the progress bar; different for each stage of an evaluation.
            compute: yields the number and value of each of the parts that it is called with.
            size: numbers that the values depend on, such as those of examples and of a part's examples.
            record: write the values to the file; they must then be JSON values.
        """
        done: dict[int, Any] = self._usable(stage, list(size)) if record else {}
        own = [part for part in parts if part % self.group.world == self.group.rank]
        todo, new = [part for part in own if part not in done], dict[int, Any]()
        computed = compute(todo) if todo else ()
        if self.group.main:
            computed = track(computed, stage, len(own), len(own) - len(todo))
        for part, value in computed:
            new[part] = self._write(stage, list(size), part, value) if record else value
        for values in self.group.gather(new):
            done = done | values
        return [done[part] for part in parts]

    def _usable(self, stage: str, size: list[int]) -> dict[int, Any]:
        """The recorded values of a stage; none if they are of another size."""
        recorded = self.recorded.sizes.get(stage, size)
        if recorded == size:
            return self.recorded.values.get(stage, {})
        self._say(f"{stage}: begins again, as the interrupted evaluation had other data (sizes {recorded}, now {size})")
        return {}

    def _write(self, stage: str, size: list[int], part: int, value: Any) -> Any:
        """Records a value; returns it as it would be read from the file."""
        line = json.dumps({"stage": stage, "size": size, "part": part, "value": value})
        if self.folder is not None:
            self._lines.append(f"{line}\n")
            if time.monotonic() - self._written >= FLUSH:
                self.flush()
        return json.loads(line)["value"]

    def flush(self) -> None:
        """Writes what is not yet in the file. Raises WriteError."""
        if not self._lines or self.folder is None:
            return
        path = self.folder / f"progress-{self.group.rank}.jsonl"
        with naming_write_errors(path):
            if self._file is None:
                begun = path.exists()
                self._file = path.open("a", encoding="utf-8")
                if not begun:
                    self._file.write(json.dumps(self._identity()) + "\n")
            self._file.write("".join(self._lines))
            self._file.flush()
        self._lines, self._written = [], time.monotonic()

    def close(self, finished: bool) -> None:
        """Closes the file, and writes what is left unless the evaluation is finished."""
        try:
            if not finished:
                self.flush()
        finally:
            if self._file is not None:
                self._file.close()

    def remove(self) -> None:
        """Removes the files of all ranks."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob(_FILES))

    def _read(self) -> _Recorded:
        """What the files of an earlier process have. They are removed if they belong to something else, or are damaged.

        An incomplete last line, of a process that was killed, is cut off.
        """
        recorded = _Recorded()
        for path in self._paths():
            if why := self._read_file(path, recorded):
                self._say(f"{path}: {why}: the evaluation begins again")
                self.remove()
                return _Recorded()
        if number := sum(map(len, recorded.values.values())):
            self._say(f"continues an interrupted evaluation: {number} parts are done ({self.folder})")
        return recorded

    def _read_file(self, path: Path, recorded: _Recorded) -> str:
        """Adds what one file has to `recorded`; returns why it cannot be used, "" if it can."""
        lines = path.read_bytes().split(b"\n")
        if lines.pop():
            with path.open("rb+") as file:
                file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            path.unlink()
            return ""
        try:
            header, *rows = map(decode_json, lines)
        except InvalidJSON as error:
            return f"damaged ({error})"
        if differing := _differences(header, json.loads(json.dumps(self._identity()))):
            return f"the interrupted evaluation had another {' and '.join(differing)}"
        for row in rows:
            if why := schema_error(row, _ROW):
                return f"damaged ({why})"
            if recorded.sizes.get(row["stage"]) != row["size"]:  # of other data: the stage began again
                recorded.sizes[row["stage"]], recorded.values[row["stage"]] = row["size"], {}
            recorded.values[row["stage"]][row["part"]] = row["value"]
        return ""

    def _say(self, line: str) -> None:
        if self.group.main:
            echo(line)


def _differences(header: Any, identity: Mapping[str, Any]) -> list[str]:
    """The names of what differs between a file's header and the identity of this evaluation."""
    if not isinstance(header, dict):
        return ["format"]
    return [name for name in {**header, **identity} if header.get(name) != identity.get(name)]


_session: ContextVar[Session | None] = ContextVar("session", default=None)


@contextmanager
def session(group: Group, folder: Path, identity: Callable[[], Mapping[str, Any]]) -> Iterator[Session]:
    """Context in which the values of an evaluation are shared by the ranks of `group` and recorded. See `Session`."""
    current = Session(group, folder, identity)
    token, finished = _session.set(current), False
    try:
        yield current
        finished = True
    finally:
        _session.reset(token)
        current.close(finished)


def current_session() -> Session:
    """The session of the evaluation that is being computed; outside `session` one rank that records nothing."""
    return _session.get() or Session(Group(torch.device("cpu")))


def pack(values: Float[Tensor, " n"]) -> str:
    """Numbers as text for JSON, float32 to the last bit."""
    return base64.b64encode(values.float().cpu().numpy().astype("<f4").tobytes()).decode()


def unpack(text: str) -> Float[Tensor, " n"]:
    """The numbers of `pack`."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32))
