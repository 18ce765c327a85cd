from __future__ import annotations

import io
import json
import tarfile

import pytest
from PIL import Image as Pillow

from diptych.data.sources.base import BadSample
from diptych.data.sources.captions import open_captions
from diptych.data.webdataset.tar_samples import MAX_TEXT_BYTES
from diptych.data.webdataset.writer import Sample, picture_file, safe_key, sample_texts, write_shard
from tests.data.tiny_data import Colours, image_bytes, write_karpathy


def sample(key: str, seed: int = 0) -> Sample:
    return Sample(key, image_bytes(seed), "jpg", sample_texts(["a", "b"], {"more": {"x": 1}}, key))


def test_written_samples_are_read_back(tmp_path):
    write_shard(tmp_path / "train-0.tar", [sample("b/1", 1), sample("a", 2)])
    source = open_captions(str(tmp_path / "train-0.tar"), "train")
    assert len(source) == 2 and source.captions(0) == ("a", "b")
    assert [source.file(i) for i in (0, 1)] == [image_bytes(1), image_bytes(2)]  # type: ignore[attr-defined]
    with tarfile.open(tmp_path / "train-0.tar") as tar:
        assert tar.getnames() == ["b/1.jpg", "b/1.json", "a.jpg", "a.json"]
        file = tar.extractfile("a.json")
        assert file and json.load(file) == {"caption": ["a", "b"], "more": {"x": 1}}


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, [sample("1"), sample("2")])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as tar:
        assert all((m.mtime, m.uid, m.uname) == (0, 0, "") for m in tar)


@pytest.mark.parametrize(
    "key", ["../x", "/etc/passwd", "a/../b", "a\\b", "-rf", ".x", "a\nb", "", "é", "x" * 81, "a//b", "a.b"]
)
def test_no_key_leaves_the_folder(tmp_path, key):
    write_shard(tmp_path / "t.tar", [sample(key)])
    with tarfile.open(tmp_path / "t.tar") as tar:
        name = tar.getnames()[0].removesuffix(".jpg")
    assert name == safe_key(key) and name.startswith("sample-") and name.removeprefix("sample-").isalnum()


def test_plain_keys_are_kept_and_others_stay_distinct():
    assert safe_key("cc3m/000_12-a") == "cc3m/000_12-a"
    assert safe_key("../x") != safe_key("../y")


def test_files_are_copied_and_other_images_are_encoded(tmp_path):
    write_karpathy(tmp_path, 2)
    source = open_captions(str(tmp_path), "train")
    assert picture_file(source, 0) == (image_bytes(0, (30, 44)), "jpg")
    data, suffix = picture_file(Colours(3), 2)
    assert suffix == "png" and Pillow.open(io.BytesIO(data)).getpixel((0, 0)) == (2, 2, 2)


@pytest.mark.parametrize("name,format,kept", [("x.jpg", "PNG", True), ("x.jpg", "BMP", False), ("x.jpg", "GIF", False)])
def test_the_suffix_follows_from_the_bytes(tmp_path, name, format, kept):
    (tmp_path / "train.csv").write_text(f"image,caption\n{name},a\n")
    (tmp_path / name).write_bytes(image_bytes(format=format))
    source = open_captions(str(tmp_path), "train")
    data, suffix = picture_file(source, 0)
    assert suffix == "png" and (data == image_bytes(format=format)) == kept
    (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(BadSample, match="not a readable image"):
        picture_file(source, 0)


def test_samples_that_no_reader_accepts_are_not_written():
    with pytest.raises(BadSample, match=r"k: its JSON has \d+ bytes, more than"):
        sample_texts(["x" * MAX_TEXT_BYTES], {}, "k")
