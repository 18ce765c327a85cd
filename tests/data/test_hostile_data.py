"""Malicious images, tars and pickles at the command line: rejected with a printable one-line error, or skipped."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from diptych.cli import main
from diptych.data.sources.base import BadSample
from diptych.runs.qualitative_examples import read_examples
from tests.data.tiny_data import image_bytes
from tests.data.webdataset.test_tar_samples import HARM, header

TINY = ["--model.dim", "16", "--model.depth", "1", "--model.num_heads", "2", "--model.mlp_dim", "32", "--model.text_length", "24", "--batch_size", "4", "--steps", "2", "--workers", "0", "--device", "cpu", "--precision", "fp32"]  # fmt: skip


def tiff(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(values).save(out, "TIFF")
    return out.getvalue()


def folder(root: Path, odd: bytes) -> Path:
    """Writes eight images of a training split with a caption each; the last image is `odd`."""
    for k in range(8):
        (root / f"{k}.tif").write_bytes(odd if k == 7 else image_bytes(k))
    rows = "".join(f"{k}.tif,a red circle in a picture,train\n" for k in range(8))
    (root / "captions.csv").write_text(f"image,caption,split\n{rows}")
    return root


def pretrain(data: object, out: Path) -> list[str]:
    return ["pretrain", "vilt.tiny", "--data", str(data), *TINY, "--out", str(out)]


@pytest.mark.slow
def test_float_images_are_trained_on_or_skipped_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, values, why in (
        ("grey", np.linspace(0, 1, 1200).reshape(30, 40).astype(np.float32), ""),
        ("nan", np.full((30, 40), np.nan, np.float32), "it has values that are not finite"),
        ("dark", np.arange(1200, dtype=np.uint16).reshape(30, 40) % 60, "become one or two grey levels in 8 bits"),
    ):
        data, out = tmp_path / name, tmp_path / f"{name}-run"
        data.mkdir()
        folder(data, tiff(values))
        assert main([*pretrain(data, out), "--max_skipped", "0.9"]) == 0, capsys.readouterr().err
        listed = json.loads((out / "skipped.json").read_text()) if (out / "skipped.json").exists() else []
        assert [why in row["why"] and "7.tif" in row["where"] for row in listed] == ([True] if why else [])


def test_a_tar_that_declares_gigabytes_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("digits", "a header longer than memory", "headers upon headers"):
        image = image_bytes(1)
        body = image + bytes(-len(image) % 512)
        good = header("0.jpg", len(image)) + body + header("0.txt", 5) + b"a dog".ljust(512, b"\0")
        (tmp_path / "train-0.tar").write_bytes(good + HARM[name])
        words = ["baselines", "--task", "retrieval", "--split", "train", "--data", str(tmp_path / "train-0.tar")]
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "train-0.tar: not a whole uncompressed tar (" in line and "write the shard again" in line


def test_a_vocabulary_of_colliding_keys_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # written without a dict, which would take as long
    pairs = b"".join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] + b"K\x01s" for k in range(1, 20_000))
    (tmp_path / "v.pkl").write_bytes(b"\x80\x02}" + pairs + b".")
    assert main([*pretrain("scenes:20", tmp_path / "out"), "--vocabulary", str(tmp_path / "v.pkl")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "v.pkl: it has an integer key that is not below 2**60" in line


def test_saved_examples_with_a_format_that_runs_programs_raise(tmp_path: Path):
    """A PostScript image in examples.json, for which Pillow would run Ghostscript, is rejected unread."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    uri = f"data:image/jpeg;base64,{base64.b64encode(program).decode()}"
    (tmp_path / "examples.json").write_text(json.dumps([{"kind": "caption", "picture": {"picture": uri}, "caption": "a", "score": 1, "references": []}]))  # fmt: skip
    with pytest.raises(BadSample, match=r"examples\.json: not a readable image: none of JPEG"):
        read_examples(tmp_path / "examples.json")
