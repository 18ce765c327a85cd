"""Every source of pairs gives each image an id: one for all copies of a photo in any file and process."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from diptych.batch import Batch
from diptych.config.data import ImageSettings, Streaming
from diptych.data.examples import PairExamples
from diptych.data.mixgen import MixedPairs
from diptych.data.ranking import RankedExamples
from diptych.data.regions.files import RegionFolder
from diptych.data.regions.frozen_features import RegionLoader
from diptych.data.sources.ablations import CorruptedCaptions
from diptych.data.sources.base import BadSample, Captioned
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.data.webdataset.stream_loader import stream_loader
from diptych.data.webdataset.streamed_shards import Stream
from tests.data.tiny_data import Colours, image_bytes, write_karpathy

TOKENIZER, SMALL = Tokenizer(16), ImageSettings(shorter_side=16, patch_size=16, square=True)


def pairs(source: Captioned, matching: float = 0.0) -> PairExamples:
    return PairExamples(source, TOKENIZER, SMALL, matching)


def batch_of(examples: PairExamples) -> Batch:
    ids = list(range(len(examples)))
    return examples.collate([examples.load(i, 0, 0) for i in ids], ids, 0, 0)


def identities(source: Captioned) -> list[int]:
    """The image id of each pair."""
    return batch_of(pairs(source)).labels["image"].tolist()


def write_images(folder: Path, n: int = 3) -> list[str]:
    names = [f"{i}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(image_bytes(i))
    return names


def rows(folder: Path, format: str) -> str:
    """Two captions of each of three photos, in a file of the format; the spec that opens it."""
    pairs = [(name, f"caption {k}") for k in range(2) for name in write_images(folder)]
    path = folder / f"train.{format}"
    if format == "jsonl":
        path.write_text("\n".join(json.dumps({"image": name, "caption": text}) for name, text in pairs))
        return str(path)
    if format == "json":
        path = folder / "captions_train.json"
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
        notes = [{"image_id": int(name[0]), "caption": text} for name, text in pairs]
        path.write_text(json.dumps({"images": images, "annotations": notes}))
        return str(path)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if format == "tsv" else ",").writerows([("image", "caption"), *pairs])
    return str(path)


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "json"])
def test_captions_of_an_image_have_its_id_in_tables_and_in_cocos_json(tmp_path: Path, format: str):
    ids = identities(open_captions(rows(tmp_path, format), "train"))
    assert len(ids) == 6 and ids == np.repeat(ids[::2], 2).tolist() and len(set(ids)) == 3
    assert all(0 <= number < 2**63 for number in ids)


def test_captions_of_an_image_have_its_id_in_karpathys_json_and_if_shuffled(karpathy: Path):
    source = open_captions(str(karpathy), "train")
    ids = identities(source)
    assert len(set(ids)) == 12 and ids == np.repeat(ids[::2], 2).tolist()
    assert identities(CorruptedCaptions(source, 0.5)) == ids, "the id depends on the image only"


@pytest.mark.slow
def test_the_id_is_a_digest_of_the_file_equal_in_every_process(karpathy: Path):
    source = open_captions(str(karpathy), "train")
    data = source.file(0)  # type: ignore[attr-defined]
    digest = blake2b(f"{len(data)} ".encode() + data, digest_size=20).digest()
    assert identities(source)[0] == int.from_bytes(digest[:8], "big") >> 1
    code = (
        "import sys; from diptych.data.sources.captions import open_captions; from diptych.data.images.loading import *;"
        "from diptych.config.data import ImageSettings; s = open_captions(sys.argv[1], 'train');"
        "print([identity_of(image_loader(ImageSettings()), s, i) for i in range(2)])"
    )
    command = [sys.executable, "-c", code, str(karpathy)]
    outputs = {subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": seed}) for seed in "12"}
    assert outputs == {f"{identities(source)[:4:2]}\n".encode()}


def test_a_photo_under_two_names_has_one_id(tmp_path: Path):
    write_karpathy(tmp_path, n=4)
    (tmp_path / "images" / "003.jpg").write_bytes((tmp_path / "images" / "000.jpg").read_bytes())
    ids = identities(open_captions(str(tmp_path), "train"))
    assert ids[6] == ids[7] == ids[0] and len(set(ids)) == 3


def write_tar(path: Path, samples: list[tuple[str, int, str]]) -> None:
    """Each sample is (key, photo, caption)."""
    with tarfile.open(path, "w") as tar:
        for key, photo, text in samples:
            for suffix, data in (("jpg", image_bytes(photo)), ("txt", text.encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_a_photo_repeated_for_each_caption_has_one_id_across_tars(tmp_path: Path):
    """The layout of download tools: one sample per caption, with its photo repeated."""
    for shard in range(2):
        write_tar(tmp_path / f"train-{shard}.tar", [(f"{shard}{i}", i, f"caption {shard} {i}") for i in range(3)])
    spec = str(tmp_path / "train-{0..1}.tar")
    ids = identities(open_captions(spec, "train"))
    assert ids[:3] == ids[3:] and len(set(ids)) == 3

    stream = Stream(spec, "train", Streaming(2, 8))
    steps = list(stream_loader(stream, pairs, batch_size=6, seed=1, start=0, steps=3, workers=0))
    for (loaded,) in steps:
        streamed = loaded.batch.labels["image"].tolist()
        assert sorted(streamed) == sorted(ids), "each lane gives the three photos of its tar"
    one, two = (
        list(stream_loader(stream, pairs, batch_size=6, seed=1, start=0, steps=3, rank=r, world=2, workers=0))
        for r in (0, 1)
    )
    for (first,), (second,), (all_of_it,) in zip(one, two, steps, strict=True):
        by_rank = first.batch.labels["image"].tolist() + second.batch.labels["image"].tolist()
        assert by_rank == all_of_it.batch.labels["image"].tolist()


def test_a_resumed_stream_gives_the_same_ids(tmp_path: Path):
    write_tar(tmp_path / "train-0.tar", [(f"{i}", i // 2, f"caption {i}") for i in range(8)])
    stream = Stream(str(tmp_path / "train-0.tar"), "train", Streaming(1, 8))
    whole = list(stream_loader(stream, pairs, batch_size=4, seed=1, start=0, steps=4, workers=0))
    cursor = whole[1][0].cursor
    rest = list(stream_loader(stream, pairs, batch_size=4, seed=1, start=2, steps=4, workers=0, cursor=cursor))
    labels = [[x.batch.labels["image"].tolist() for (x,) in part] for part in (whole[2:], rest)]
    assert labels[0] == labels[1] and len({number for row in labels[0] for number in row}) == 4


def test_scenes_have_one_id_each():
    ids = identities(open_captions("scenes:4", "train"))
    assert len(set(ids)) == 4 and ids == sorted(ids, key=ids.index), "the captions of a scene are consecutive"
    assert identities(open_captions("scenes:4", "train")) == ids
    assert not set(identities(open_captions("scenes:4", "train", seed=1))) & set(ids)


def test_images_with_detected_regions_are_identified_by_name_and_not_read(tmp_path: Path):
    """The image files may be empty if the features come from a detector."""
    path = write_karpathy(tmp_path, n=3).parent
    (tmp_path / "regions").mkdir()
    for i in range(3):
        (path / "images" / f"{i:03d}.jpg").write_bytes(b"")
        box = np.array([[0, 0, 9, 9.0]])
        np.savez(tmp_path / "regions" / f"{i:03d}.npz", features=np.eye(2)[:1], boxes=box, image_w=10, image_h=10)
    shows = RegionLoader(RegionFolder(tmp_path / "regions"))
    ids = batch_of(PairExamples(open_captions(str(path), "train"), TOKENIZER, shows, 0.0)).labels["image"].tolist()
    assert len(set(ids)) == 3 and ids == np.repeat(ids[::2], 2).tolist()


def test_mixed_and_ranked_pairs_keep_the_id_of_their_own_image():
    plain, source = pairs(Colours(6)), Colours(6)
    expected = batch_of(plain).labels["image"]
    ids = list(range(12))
    mixed = MixedPairs(plain, chance=1.0)
    assert mixed.collate([mixed.load(i, 0, 1) for i in ids], ids, 0, 1).labels["image"].equal(expected)
    ranked = RankedExamples(source, TOKENIZER, SMALL, 3)
    assert ranked.collate([ranked.load(i, 0, 1) for i in ids], ids, 0, 1).labels["image"].equal(expected)


class Duplicated(Colours):
    """Every photo twice, the copies after all others."""

    def __len__(self) -> int:
        return 2 * self.n

    def image(self, index: int):
        return super().image(index % self.n)


def test_no_image_is_replaced_by_the_same_photo():
    examples = pairs(Duplicated(2), matching=1.0)
    for step in range(20):
        for index in range(len(examples)):
            loaded = examples.load(index, 0, step)
            assert not np.array_equal(loaded.matching_image, loaded.image)
    example = pairs(Duplicated(1), matching=1.0).load(0, 0, 0)
    assert example.matching_image is None, "without another photo the pair is kept"
    with pytest.raises(BadSample, match="no readable image"):
        pairs(Duplicated(2, bad=frozenset({1})), matching=1.0).load(0, 0, 0)
