"""Parts of an evaluation: divided over ranks, recorded as they come, continued after an interruption."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.tasks.session import Session, current_session, pack, session, unpack
from diptych.training.distributed import Group

CPU = torch.device("cpu")
ALONE = Group(CPU)
IDENTITY = {"task": "vqa", "model": "0123"}


class Work:
    """Computes parts, and is interrupted before part `stop`."""

    def __init__(self, stop: int | None = None):
        self.stop, self.done = stop, list[int]()

    def __call__(self, parts: list[int]) -> Iterator[tuple[int, Any]]:
        for part in parts:
            if part == self.stop:
                raise KeyboardInterrupt
            self.done.append(part)
            yield part, {"value": part / 3, "texts": [f"\ud83d {part}"]}


EXPECTED = [{"value": part / 3, "texts": [f"\ud83d {part}"]} for part in range(7)]


def evaluated(folder: Path, work: Work, identity: dict[str, Any] = IDENTITY, size: tuple[int, ...] = (20, 3)) -> Any:
    with session(ALONE, folder, lambda: identity) as parts:
        values = current_session().values("answering", range(7), work, size)
        parts.remove()
    return values


def interrupted(folder: Path, stop: int = 4) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluated(folder, Work(stop))


def test_an_interrupted_evaluation_computes_only_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    interrupted(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["progress-0.jsonl"]
    work = Work()
    assert evaluated(tmp_path, work) == EXPECTED and work.done == [4, 5, 6]
    assert "continues an interrupted evaluation: 4 parts are done" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_it_may_be_interrupted_again_and_again(tmp_path: Path):
    for stop in (0, 1, 3, 3, 6):
        interrupted(tmp_path, stop)
    work = Work()
    assert evaluated(tmp_path, work) == EXPECTED and work.done == [6]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_an_incomplete_last_line_is_computed_again(tmp_path: Path, cut: int):
    interrupted(tmp_path)
    file = tmp_path / "progress-0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    interrupted(tmp_path, 5)
    work = Work()
    assert evaluated(tmp_path, work) == EXPECTED and work.done == [5, 6]


def test_a_file_of_which_not_even_the_first_line_is_whole_counts_for_nothing(tmp_path: Path):
    (tmp_path / "progress-0.jsonl").write_text('{"task": "v')
    work = Work()
    assert evaluated(tmp_path, work) == EXPECTED and work.done == [*range(7)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: ['{"task": "vqa", "model": "4567"}', *lines[1:]], "had another model: the evaluation begins"),
        (lambda lines: ["[]", *lines[1:]], "had another format"),
        (lambda lines: [*lines[:2], "no JSON", *lines[3:]], "damaged"),
        (lambda lines: [*lines[:2], '{"stage": "answering"}', *lines[3:]], "damaged (the object lacks 'size')"),
    ],
)
def test_what_does_not_belong_to_it_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, why: str
):
    interrupted(tmp_path)
    file = tmp_path / "progress-0.jsonl"
    file.write_text("".join(f"{line}\n" for line in change(file.read_text().splitlines())))
    work = Work()
    assert evaluated(tmp_path, work) == EXPECTED and work.done == [*range(7)]
    assert why in capsys.readouterr().out


def test_parts_of_data_of_another_size_are_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    interrupted(tmp_path)
    work = Work(stop=5)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, work, size=(21, 3))
    assert work.done == [0, 1, 2, 3, 4]
    assert "answering: begins again, as the interrupted evaluation had other data" in capsys.readouterr().out
    work = Work()
    assert evaluated(tmp_path, work, size=(21, 3)) == EXPECTED and work.done == [5, 6]


def test_at_most_two_seconds_of_work_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diptych.tasks.session.FLUSH", 0.0)
    lines: list[int] = []

    def work(parts: list[int]) -> Iterator[tuple[int, int]]:
        for part in parts:
            yield part, part
            lines.append(len((tmp_path / "progress-0.jsonl").read_text().splitlines()))

    Session(ALONE, tmp_path, lambda: IDENTITY).values("writing", range(3), work)
    assert lines == [2, 3, 4], "the header, and each part as it is computed"


def test_parts_that_are_not_recorded_leave_no_file(tmp_path: Path):
    opened = Session(ALONE, tmp_path, lambda: IDENTITY)
    tensors = opened.values("encoding", range(2), lambda parts: ((i, torch.ones(1) * i) for i in parts), record=False)
    opened.close(finished=False)
    assert [float(x) for x in tensors] == [0, 1] and not list(tmp_path.iterdir())


def test_without_a_session_everything_is_computed_and_nothing_recorded():
    assert current_session().values("answering", range(7), Work()) == EXPECTED


STOPPED = object()


class Threads:
    """Ranks as threads, which exchange their values, and stop where one of them did."""

    def __init__(self, world: int):
        self.world, self.barrier, self.values = world, threading.Barrier(world), [None] * world

    def group(self, rank: int) -> Group:
        threads = self

        class Rank(Group):
            def gather(self, value: Any) -> list[Any]:
                threads.values[rank] = value
                threads.barrier.wait(10)
                values: list[Any] = list(threads.values)
                threads.barrier.wait(10)
                if STOPPED in values:
                    raise KeyboardInterrupt
                return values

        return Rank(CPU, rank, self.world)

    def run(self, folder: Path, works: list[Work]) -> list[Any]:
        results: list[Any] = [None] * self.world

        def rank(number: int) -> None:
            group = self.group(number)
            opened = Session(group, folder, lambda: IDENTITY)
            try:
                results[number] = opened.values("answering", range(7), works[number], (20, 3))
            except KeyboardInterrupt:
                opened.close(finished=False)
                if works[number].stop is not None:
                    with contextlib.suppress(KeyboardInterrupt):
                        group.gather(STOPPED)

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_ranks_divide_the_parts_and_all_have_all_values(tmp_path: Path):
    works = [Work(), Work(), Work()]
    assert Threads(3).run(tmp_path, works) == [EXPECTED] * 3
    assert [work.done for work in works] == [[0, 3, 6], [1, 4], [2, 5]]


def test_another_number_of_ranks_continues(tmp_path: Path):
    Threads(2).run(tmp_path, [Work(stop=4), Work()])
    headers = [json.loads((tmp_path / f"progress-{r}.jsonl").read_text().splitlines()[0]) for r in (0, 1)]
    assert headers == [IDENTITY] * 2
    work = Work()
    assert evaluated(tmp_path, work) == EXPECTED and work.done == [4, 6]
    assert not list(tmp_path.iterdir())


def test_packed_numbers_are_the_same_to_the_last_bit():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)).mul(1e-3)
    values[:3] = torch.tensor([torch.inf, -0.0, 1e-40])
    assert torch.equal(unpack(json.loads(json.dumps(pack(values)))), values)
    assert unpack(pack(values[:0])).shape == (0,)
