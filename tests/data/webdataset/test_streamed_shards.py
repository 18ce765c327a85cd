"""Streams: each sample once an epoch, one order on any number of ranks, and an exact continuation from four numbers a lane."""

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
from tests.data.tiny_data import picture_bytes

IMAGES = ImageSettings(shorter_side=16, patch_size=16)
TOKENIZER = Tokenizer(16)


def write(path: Path, keys: list[int], bad: frozenset[int] = frozenset(), picture: bytes | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            content = picture if picture is not None else picture_bytes(key)
            members = {"jpg": b"broken" if key in bad else content, "txt": f"caption {key}".encode(), "cls": b"3"}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{'deep/' * (key % 3)}{key:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def tars(folder: Path, sizes: list[int], **options) -> str:
    """Tars of so many samples each, which are numbered through; the brace glob that names them."""
    first = 0
    for i, size in enumerate(sizes):
        write(folder / f"train-{i:02d}.tar", list(range(first, first + size)), **options)
        first += size
    return str(folder / f"train-{{00..{len(sizes) - 1:02d}}}.tar")


def numbers(taken) -> list[int]:
    return [int(raw.captions[0].split()[1]) for raw in taken]


def test_raws_are_what_an_index_finds_from_any_sample_on(tmp_path: Path):
    tars(tmp_path, [5])
    shard = tmp_path / "train-00.tar"
    found, index = list(tar_samples(shard)), read_index(shard)
    assert [(r.where.rpartition(", ")[2], r.captions) for r, _ in found] == [(m.key, m.captions) for m in index]
    data = shard.read_bytes()
    assert [r.picture for r, _ in found] == [data[m.start : m.start + m.size] for m in index]
    for i, (_, behind) in enumerate(found):
        assert list(tar_samples(shard, behind)) == found[i + 1 :]
    assert len({r.id for r, _ in found}) == 5


@st.composite
def layouts(draw):
    lanes = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 7), min_size=lanes, max_size=6))
    return sizes, Streaming(lanes, draw(st.integers(1, 12))), draw(st.integers(0, 3))


@pytest.mark.slow
@given(layouts(), st.data())
@settings(max_examples=25, deadline=None)
def test_each_sample_comes_once_an_epoch_and_any_stop_is_gone_on_from(layout, data):
    sizes, streaming, seed = layout
    with tempfile.TemporaryDirectory() as folder:
        stream = Stream(tars(Path(folder), sizes, picture=b"x"), "train", streaming)
        everyone = stream.lanes(range(streaming.lanes), seed, {})
        first = [number for lane in everyone for number in numbers(epoch_of(lane))]
        assert sorted(first) == list(range(sum(sizes)))

        n = data.draw(st.integers(0, 2 * sum(sizes)))
        before, whole = (stream.lanes([0], seed, {})[0] for _ in range(2))
        head = [raw for part in cut(data, n) for raw in before.take(part)]
        after = stream.lanes([0], seed, cursor_of([before]))[0]
        assert head + after.take(9) == whole.take(n + 9)
        assert after.place == whole.place


def epoch_of(lane: Lane) -> list:
    """All that a lane gives out before its first epoch ends."""
    taken = []
    while True:
        found = lane.take(1)
        if lane.place.epoch > 0:
            return taken
        taken += found


def cut(data, n: int) -> list[int]:
    """`n` in parts."""
    first = data.draw(st.integers(0, n))
    return [first, n - first]


def test_large_samples_are_held_as_far_as_there_is_room_and_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = tars(tmp_path, [7, 6, 9, 5], picture=bytes(1000))
    monkeypatch.setattr("diptych.data.webdataset.streamed_shards.MAX_HELD", 2 * 2500)  # two and a half in each lane
    stream = Stream(spec, "train", Streaming(2, 1000))
    assert sorted(n for lane in stream.lanes([0, 1], 0, {}) for n in numbers(epoch_of(lane))) == list(range(27))
    everything = stream.lanes([0], 0, {})[0].take(40)
    for n in range(1, 20):
        before = stream.lanes([0], 0, {})[0]
        head = before.take(n)
        assert len(before._buffered) <= 3
        assert head + stream.lanes([0], 0, cursor_of([before]))[0].take(9) == everything[: n + 9]


def test_a_lane_does_not_go_on_in_tars_that_were_cut_off(tmp_path: Path):
    stream = Stream(tars(tmp_path, [9]), "train", Streaming(1, 9))
    lane = stream.lanes([0], 0, {})[0]
    lane.take(6)
    write(tmp_path / "train-00.tar", [0, 1])
    with pytest.raises(
        DataError, match="read 6 samples of a buffer that now has 2: the tars have changed; restore them"
    ):
        stream.lanes([0], 0, cursor_of([lane]))


def test_epochs_and_seeds_differ_and_what_is_neighbours_is_torn_apart(tmp_path: Path):
    stream = Stream(tars(tmp_path, [40, 40], picture=b"x"), "train", Streaming(1, 30))
    one, two, other = (numbers(stream.lanes([0], seed, {})[0].take(160)) for seed in (0, 0, 1))
    assert one == two != other
    assert one[:80] != one[80:] and sorted(one[:80]) == sorted(one[80:])
    assert sum(abs(a - b) == 1 for a, b in pairwise(one)) < 20


def pairs(source: Captioned) -> PairExamples:
    return PairExamples(source, TOKENIZER, IMAGES, 0.5)


def run(stream: Stream, make=pairs, **options: Any) -> list[list[Loaded]]:
    usual: dict[str, Any] = {"batch_size": 8, "seed": 3, "start": 0, "steps": 6, "workers": 0}
    return list(stream_loader(stream, make, **usual | options))


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
    told = [[(s.id, s.where) for s in x.skipped] for x in (one, other)]
    return told[0] == told[1] and all(torch.equal(x, y) for x, y in tensors)


def ids(steps: list[list[Loaded]]) -> list[list[int]]:
    return [[i for part in step for i in part.batch.ids.tolist()] for step in steps]


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
    there = run(stream, workers=2)
    assert all(
        equal(a, b) and a.cursor == b.cursor
        for x, y in zip(whole, there, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_another_number_of_ranks_goes_on_in_the_same_order(tmp_path: Path, before: int, after: int):
    stream = Stream(tars(tmp_path, [5, 3, 6, 4]), "train", Streaming(4, 8))
    whole = run(stream)
    cursor: dict[str, list[int]] = {}
    for rank in range(before):
        cursor |= run(stream, rank=rank, world=before, steps=3)[-1][-1].cursor
    rest = [run(stream, rank=r, world=after, start=3, cursor=cursor) for r in range(after)]
    assert [list(chain(*parts)) for parts in zip(*map(ids, rest), strict=True)] == ids(whole)[3:]


def test_of_a_picture_and_its_mirror_image_one_is_drawn(tmp_path: Path):
    stream = Stream(tars(tmp_path, [8]), "train", Streaming(1, 8))
    steps = run(stream, partial(ImageExamples, images=IMAGES), steps=8)
    images = [x.batch.image for step in steps for x in step]
    assert all(image is not None and len(image) == 8 for image in images)
    kinds = Counter(hash(p.numpy().tobytes()) for image in images if image is not None for p in image.pixels)
    assert 8 < len(kinds) <= 16 and sum(kinds.values()) == 64


def test_what_cannot_be_dealt_is_refused_in_one_line(tmp_path: Path):
    spec = tars(tmp_path, [2, 2], picture=b"x")
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


def test_what_is_damaged_is_one_bad_sample_and_the_rest_is_read(tmp_path: Path):
    """Cut off, overwritten in the middle, and no tar at all: the stream goes on with what is whole, the same from any cursor."""
    stream = Stream(tars(tmp_path, [6, 6, 6, 6]), "train", Streaming(1, 24))
    at = {shard.name: [behind for _, behind in tar_samples(shard)] for shard in stream.shards}
    cut, overwritten, none = stream.shards[:3]
    cut.write_bytes(cut.read_bytes()[: at[cut.name][3] + 600])  # in the picture of the fifth
    data = bytearray(overwritten.read_bytes())
    data[at[overwritten.name][1] : at[overwritten.name][1] + 512] = b"x" * 512
    overwritten.write_bytes(data)
    none.write_bytes(b"no tar at all" * 100)
    for shard, good in ((cut, [0, 1, 2, 3]), (overwritten, [6, 7]), (none, [])):
        found = list(tar_samples(shard))
        bad = [raw for raw, _ in found if raw.bad]
        assert numbers(raw for raw, _ in found if not raw.bad) == good
        assert len(bad) >= 1 and "not a whole uncompressed tar" in bad[-1].bad and shard.name in bad[-1].where
        for i, (_, behind) in enumerate(found):
            assert list(tar_samples(shard, behind)) == found[i + 1 :]
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


def test_a_sample_that_lacks_a_part_does_not_end_the_stream(tmp_path: Path):
    said = {"0.jpg": picture_bytes(0), "0.txt": b"caption 0", "1.jpg": picture_bytes(1), "2.txt": b"caption 2"}
    said |= {"3.jpg": picture_bytes(3), "3.txt": b"caf\xe9", "4.jpg": picture_bytes(4), "4.json": b"{"}
    said |= {"5.jpg": picture_bytes(5), "5.txt": b"x" * 1_000_001, "6.jpg": b"", "6.txt": b"caption 6"}
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, data in said.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = [raw for raw, _ in tar_samples(tmp_path / "train-0.tar")]
    reasons = [
        "",
        "no caption",
        "no image",
        "its caption is not UTF-8",
        "line 1, column 2: not JSON",
        "its caption has",
        "its image is empty",
    ]
    for raw, why in zip(found, reasons, strict=True):
        assert raw.bad.startswith(why) and bool(raw.bad) == bool(why), raw
    stream = Stream(str(tmp_path / "train-0.tar"), "train", Streaming(1, 7))
    steps = run(stream, partial(ImageExamples, images=IMAGES), batch_size=7, steps=3)
    assert set(chain(*ids(steps))) == {found[0].id}
    assert {s.why for step in steps for part in step for s in part.skipped} == {raw.bad for raw in found if raw.bad}
    assert len(stream.head()) == 2  # the empty picture's too: it was not opened


def test_empty_tars_are_named(tmp_path: Path):
    write(tmp_path / "train-0.tar", [])
    stream = Stream(str(tmp_path / "train-0.tar"), "train", Streaming(1))
    with pytest.raises(DataError, match="no samples in this lane's tars"):
        stream.lanes([0], 0, {})[0].take(1)
    with pytest.raises(DataError, match="no samples in any of 1 tars"):
        stream.head()
    with pytest.raises(DataError, match="cannot be read"):
        list(tar_samples(tmp_path / "gone.tar"))
    assert Position(*cursor_of([Lane([], 0, 1, 1, 0)])["0"]) == Position()
