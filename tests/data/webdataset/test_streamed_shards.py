"""Streams: each sample once per epoch, one order on any number of ranks, exact resume from four numbers per lane."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections import Counter
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.config.data import ImageSettings, Streaming
from diptych.data.examples import ImageExamples, PairExamples
from diptych.data.loader import Loaded
from diptych.data.sources.base import Captioned, DataError
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.data.webdataset.indexed_shards import read_index
from diptych.data.webdataset.stream_loader import stream_loader
from diptych.data.webdataset.streamed_shards import Lane, Position, Stream, cursor_of
from diptych.data.webdataset.tar_samples import tar_samples
from tests.data.tiny_data import image_bytes

IMAGES = ImageSettings(shorter_side=16, patch_size=16)
TOKENIZER = Tokenizer(16)


def write(path: Path, keys: list[int], bad: frozenset[int] = frozenset(), image: bytes | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            content = image if image is not None else image_bytes(key)
            members = {"jpg": b"broken" if key in bad else content, "txt": f"caption {key}".encode(), "cls": b"3"}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{'deep/' * (key % 3)}{key:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def tars(folder: Path, sizes: list[int], **options) -> str:
    """Writes tars of these numbers of samples, numbered consecutively; the brace glob of their names."""
    first = 0
    for i, size in enumerate(sizes):
        write(folder / f"train-{i:02d}.tar", list(range(first, first + size)), **options)
        first += size
    return str(folder / f"train-{{00..{len(sizes) - 1:02d}}}.tar")


def numbers(samples) -> list[int]:
    return [int(raw.captions[0].split()[1]) for raw in samples]


def test_streamed_samples_equal_the_indexed_ones_from_any_cursor(tmp_path: Path):
    tars(tmp_path, [5])
    shard = tmp_path / "train-00.tar"
    samples, index = list(tar_samples(shard)), read_index(shard)
    assert [(r.where.rpartition(", ")[2], r.captions) for r, _ in samples] == [(m.key, m.captions) for m in index]
    data = shard.read_bytes()
    assert [r.picture for r, _ in samples] == [data[m.start : m.start + m.size] for m in index]
    for i, (_, cursor) in enumerate(samples):
        assert list(tar_samples(shard, cursor)) == samples[i + 1 :]
    assert len({r.id for r, _ in samples}) == 5


@st.composite
def layouts(draw):
    lanes = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 7), min_size=lanes, max_size=6))
    return sizes, Streaming(lanes, draw(st.integers(1, 12))), draw(st.integers(0, 3))


@pytest.mark.slow
@given(layouts(), st.data())
@settings(max_examples=25, deadline=None)
def test_each_sample_comes_once_per_epoch_and_a_stream_resumes_from_any_point(layout, data):
    sizes, streaming, seed = layout
    with tempfile.TemporaryDirectory() as folder:
        stream = Stream(tars(Path(folder), sizes, image=b"x"), "train", streaming)
        lanes = stream.lanes(range(streaming.lanes), seed, {})
        first = [number for lane in lanes for number in numbers(epoch_of(lane))]
        assert sorted(first) == list(range(sum(sizes)))

        n = data.draw(st.integers(0, 2 * sum(sizes)))
        before, whole = (stream.lanes([0], seed, {})[0] for _ in range(2))
        head = [raw for part in cut(data, n) for raw in before.take(part)]
        after = stream.lanes([0], seed, cursor_of([before]))[0]
        assert head + after.take(9) == whole.take(n + 9)
        assert after.place == whole.place


def epoch_of(lane: Lane) -> list:
    """All samples of a lane's first epoch."""
    samples = []
    while True:
        sample = lane.take(1)
        if lane.place.epoch > 0:
            return samples
        samples += sample


def cut(data, n: int) -> list[int]:
    """`n` in two parts."""
    first = data.draw(st.integers(0, n))
    return [first, n - first]


def test_large_samples_are_buffered_up_to_a_limit_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = tars(tmp_path, [7, 6, 9, 5], image=bytes(1000))
    monkeypatch.setattr("diptych.data.webdataset.streamed_shards.MAX_HELD", 2 * 2500)  # two and a half for each lane
    stream = Stream(spec, "train", Streaming(2, 1000))
    assert sorted(n for lane in stream.lanes([0, 1], 0, {}) for n in numbers(epoch_of(lane))) == list(range(27))
    everything = stream.lanes([0], 0, {})[0].take(40)
    for n in range(1, 20):
        before = stream.lanes([0], 0, {})[0]
        head = before.take(n)
        assert len(before._buffered) <= 3
        assert head + stream.lanes([0], 0, cursor_of([before]))[0].take(9) == everything[: n + 9]


def test_a_lane_does_not_resume_in_truncated_tars(tmp_path: Path):
    stream = Stream(tars(tmp_path, [9]), "train", Streaming(1, 9))
    lane = stream.lanes([0], 0, {})[0]
    lane.take(6)
    write(tmp_path / "train-00.tar", [0, 1])
    with pytest.raises(
        DataError, match="read 6 samples of a buffer that now has 2: the tars have changed; restore them"
    ):
        stream.lanes([0], 0, cursor_of([lane]))


def test_epochs_and_seeds_differ_and_neighbours_are_separated(tmp_path: Path):
    stream = Stream(tars(tmp_path, [40, 40], image=b"x"), "train", Streaming(1, 30))
    one, two, other = (numbers(stream.lanes([0], seed, {})[0].take(160)) for seed in (0, 0, 1))
    assert one == two != other
    assert one[:80] != one[80:] and sorted(one[:80]) == sorted(one[80:])
    assert sum(abs(a - b) == 1 for a, b in pairwise(one)) < 20


def pairs(source: Captioned) -> PairExamples:
    return PairExamples(source, TOKENIZER, IMAGES, 0.5)


def run(stream: Stream, make=pairs, **options: Any) -> list[list[Loaded]]:
    defaults: dict[str, Any] = {"batch_size": 8, "seed": 3, "start": 0, "steps": 6, "workers": 0}
    return list(stream_loader(stream, make, **defaults | options))


def equal(one: Loaded, other: Loaded) -> bool:
    a, b = one.batch, other.batch
    assert a.image and b.image and a.text and b.text and a.matching and b.matching
    tensors = [
        (a.ids, b.ids),
        (a.image.pixels, b.image.pixels),
        (a.text.ids, b.text.ids),
        (a.matching.image.pixels, b.matching.image.pixels),
        (a.matching.matched, b.matching.matched),
    ]
    skipped = [[(s.id, s.where) for s in x.skipped] for x in (one, other)]
    return skipped[0] == skipped[1] and all(torch.equal(x, y) for x, y in tensors)


def ids(steps: list[list[Loaded]]) -> list[list[int]]:
    return [[i for part in step for i in part.batch.ids.tolist()] for step in steps]


@pytest.mark.slow
def test_ranks_micro_batches_and_workers_change_nothing(tmp_path: Path):
    stream = Stream(tars(tmp_path, [5, 3, 6, 4], bad=frozenset({2, 11})), "train", Streaming(4, 8))
    whole = run(stream)
    ranks = [run(stream, rank=r, world=2, grad_accum=2) for r in range(2)]
    assert [a + b for a, b in zip(*map(ids, ranks), strict=True)] == ids(whole)
    assert all(len(step) == 2 for step in ranks[0])
    skipped = [{s.id for part in step for s in part.skipped} for step in whole]
    by_rank = [[{s.id for part in step for s in part.skipped} for step in steps] for steps in ranks]
    assert [a | b for a, b in zip(*by_rank, strict=True)] == skipped
    broken = {raw.id for shard in stream.shards for raw, _ in tar_samples(shard) if raw.picture == b"broken"}
    assert broken <= set(chain(*skipped)) and not broken & set(chain(*ids(whole)))
    in_workers = run(stream, workers=2)
    assert all(
        equal(a, b) and a.cursor == b.cursor
        for x, y in zip(whole, in_workers, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_another_number_of_ranks_resumes_in_the_same_order(tmp_path: Path, before: int, after: int):
    stream = Stream(tars(tmp_path, [5, 3, 6, 4]), "train", Streaming(4, 8))
    whole = run(stream)
    cursor: dict[str, list[int]] = {}
    for rank in range(before):
        cursor |= run(stream, rank=rank, world=before, steps=3)[-1][-1].cursor
    rest = [run(stream, rank=r, world=after, start=3, cursor=cursor) for r in range(after)]
    assert [list(chain(*parts)) for parts in zip(*map(ids, rest), strict=True)] == ids(whole)[3:]


def test_an_image_or_its_mirror_image_is_drawn(tmp_path: Path):
    stream = Stream(tars(tmp_path, [8]), "train", Streaming(1, 8))
    steps = run(stream, partial(ImageExamples, images=IMAGES), steps=8)
    images = [x.batch.image for step in steps for x in step]
    assert all(image is not None and len(image) == 8 for image in images)
    kinds = Counter(hash(p.numpy().tobytes()) for image in images if image is not None for p in image.pixels)
    assert 8 < len(kinds) <= 16 and sum(kinds.values()) == 64


def test_an_impossible_division_into_lanes_is_a_one_line_error(tmp_path: Path):
    spec = tars(tmp_path, [2, 2], image=b"x")
    with pytest.raises(DataError, match="2 tars are too few for 3 lanes"):
        Stream(spec, "train", Streaming(3))
    with pytest.raises(DataError, match="no tar of split 'val'"):
        Stream(spec, "val", Streaming(1))
    stream = Stream(spec, "train", Streaming(2))
    with pytest.raises(DataError, match="batch size 7 must be a multiple of 2 lanes"):
        run(stream, batch_size=7)
    with pytest.raises(DataError, match="fewer than two samples for each of 2 lanes"):
        run(stream, batch_size=2)
    with pytest.raises(DataError, match="those of 4 ranks"):
        run(stream, world=4)
    with pytest.raises(DataError, match="no position of step 3"):
        run(stream, start=3)
    with pytest.raises(DataError, match="none of 4 samples of one lane and step could be used"):
        run(stream)


def test_damage_is_one_bad_sample_and_the_rest_is_read(tmp_path: Path):
    """For a truncated tar, one overwritten in the middle, and another file, from any cursor."""
    stream = Stream(tars(tmp_path, [6, 6, 6, 6]), "train", Streaming(1, 24))
    at = {shard.name: [cursor for _, cursor in tar_samples(shard)] for shard in stream.shards}
    cut, overwritten, none = stream.shards[:3]
    cut.write_bytes(cut.read_bytes()[: at[cut.name][3] + 600])  # in the image of the fifth
    data = bytearray(overwritten.read_bytes())
    data[at[overwritten.name][1] : at[overwritten.name][1] + 512] = b"x" * 512
    overwritten.write_bytes(data)
    none.write_bytes(b"no tar at all" * 100)
    for shard, good in ((cut, [0, 1, 2, 3]), (overwritten, [6, 7]), (none, [])):
        samples = list(tar_samples(shard))
        bad = [raw for raw, _ in samples if raw.bad]
        assert numbers(raw for raw, _ in samples if not raw.bad) == good
        assert len(bad) >= 1 and "not a whole uncompressed tar" in bad[-1].bad and shard.name in bad[-1].where
        for i, (_, cursor) in enumerate(samples):
            assert list(tar_samples(shard, cursor)) == samples[i + 1 :]
    steps = run(stream, steps=8)
    used = Counter(chain(*ids(steps)))
    assert (
        used.keys() == {raw.id for shard in stream.shards for raw, _ in tar_samples(shard) if not raw.bad}
        and len(used) == 12
    )
    why = {s.why for step in steps for part in step for s in part.skipped}
    assert sum("the rest is lost" in w for w in why) == 3
    rest = run(stream, start=3, steps=8, cursor=steps[2][-1].cursor)
    assert ids(rest) == ids(steps)[3:]


def test_an_incomplete_sample_does_not_end_the_stream(tmp_path: Path):
    files = {"0.jpg": image_bytes(0), "0.txt": b"caption 0", "1.jpg": image_bytes(1), "2.txt": b"caption 2"}
    files |= {"3.jpg": image_bytes(3), "3.txt": b"caf\xe9", "4.jpg": image_bytes(4), "4.json": b"{"}
    files |= {"5.jpg": image_bytes(5), "5.txt": b"x" * 1_000_001, "6.jpg": b"", "6.txt": b"caption 6"}
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    samples = [raw for raw, _ in tar_samples(tmp_path / "train-0.tar")]
    reasons = [
        "",
        "no caption",
        "no image",
        "its caption is not UTF-8",
        "line 1, column 2: not JSON",
        "its caption has",
        "its image is empty",
    ]
    for raw, why in zip(samples, reasons, strict=True):
        assert raw.bad.startswith(why) and bool(raw.bad) == bool(why), raw
    stream = Stream(str(tmp_path / "train-0.tar"), "train", Streaming(1, 7))
    steps = run(stream, partial(ImageExamples, images=IMAGES), batch_size=7, steps=3)
    assert set(chain(*ids(steps))) == {samples[0].id}
    assert {s.why for step in steps for part in step for s in part.skipped} == {raw.bad for raw in samples if raw.bad}
    assert len(stream.head()) == 2  # the sample with an empty image too: it was not decoded


def test_empty_tars_raise(tmp_path: Path):
    write(tmp_path / "train-0.tar", [])
    stream = Stream(str(tmp_path / "train-0.tar"), "train", Streaming(1))
    with pytest.raises(DataError, match="no samples in this lane's tars"):
        stream.lanes([0], 0, {})[0].take(1)
    with pytest.raises(DataError, match="no samples in any of 1 tars"):
        stream.head()
    with pytest.raises(DataError, match="cannot be read"):
        list(tar_samples(tmp_path / "gone.tar"))
    assert Position(*cursor_of([Lane([], 0, 1, 1, 0)])["0"]) == Position()
