"""config.json: any saved model comes back as it was written, and what is not one is refused in one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

import diptych
from diptych.config.data import ImageSettings
from diptych.inference.folder import write_config
from diptych.inference.saved_model import RunError, SavedModel, check_saved, is_saved, read_config
from diptych.models.configs import Model, ViLTConfig, ViTConfig
from tests.inference.random_settings import random_settings
from tests.inference.tiny_folders import edit_json

SAVED = SavedModel(model=ViLTConfig(), images=ImageSettings(), heads=("itm", "mlm"), losses=("itm", "mlm", "wpa"))


@pytest.mark.parametrize("model", get_args(Model), ids=lambda cls: cls.__name__)
@pytest.mark.slow
def test_a_random_saved_model_comes_back_as_it_was(model: Any, tmp_path: Path):
    draw, distinct = random.Random(model.__name__), set()
    for _ in range(20):
        drawn = random_settings(SavedModel, draw)
        saved = replace(drawn, model=random_settings(model, draw), vocabulary="")
        write_config(tmp_path, saved)
        read = read_config(tmp_path)
        assert read == saved and type(read.model) is model
        assert [type(value) for value in vars(read).values()] == [type(value) for value in vars(saved).values()]
        distinct.add(repr(saved))
        write_config(tmp_path / "again", read)
        assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    assert len(distinct) == 20 and "imported=Imported(" in "".join(distinct)


def test_a_config_names_its_type_its_version_and_a_digest(tmp_path: Path):
    write_config(tmp_path, SAVED)
    record = json.loads((tmp_path / "config.json").read_text())
    assert list(record)[:2] == ["model_type", "version"] and record["digest"].startswith("crc32:")
    assert (record["model_type"], record["version"]) == ("diptych", diptych.__version__)
    assert record["model"]["kind"] == "ViLTConfig" and record["heads"] == ["itm", "mlm"]
    assert is_saved(tmp_path) and not is_saved(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", 3, "config.colour: no such field; remove it"),
        ("model/colour", 3, "config.model.colour: no such field; remove it"),
        ("model/kind", "OtherConfig", "config.model: expected one of .*, got kind 'OtherConfig'"),
        ("model", None, "config.model: expected one of .*, got None"),
        ("model/dim", 2**70, "model.dim"),
        ("images", [], r"config.images: expected an object with fields, got \[\]"),
        ("images/mean", [0.5], "config.images.mean: expected 3 values, got 1"),
        ("images/std", [0.5, 0.5, 0.0], r"images.std must be in \(0, 100\]: got 0.0"),
        ("embedders/image", "a\0b", "embedders.image must be text without a zero byte"),
        ("vocabulary", "a\0b.txt", "vocabulary must be text without a zero byte"),
        ("task", "", "task must not be empty"),
        ("heads", "itm", "config.heads: expected a list, got 'itm'"),
        ("losses", {"itm": 1}, "config.losses: expected a list"),
        ("labels", {}, "config.labels: expected a list"),
        ("imported", "vilt", "config.imported: expected an object with fields, got 'vilt'"),
        ("imported", {"system": "vilt", "task": "vqa"}, "config.imported.checkpoint: required field is missing"),
        ("imported", {"system": "", "task": "vqa", "checkpoint": "x"}, "system must not be empty"),
        ("version", "99.0", f"written by Diptych 99.0, and this is {diptych.__version__}: install the later version"),
        ("version", "newest", "version: expected a version such as"),
        ("version", 3, "version is an integer, not a string"),
    ],
)
def test_a_value_that_does_not_fit_is_named(path: str, value: Any, message: str, tmp_path: Path):
    write_config(tmp_path, SAVED)
    edit_json(tmp_path / "config.json", path, value)
    with pytest.raises(RunError, match=message) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)


TYPES: list[tuple[str, Any, str]] = [
    ("model/depth", "12", "model.depth must be an integer: got '12'"),
    ("model/depth", True, "model.depth must be an integer: got True"),
    ("embedders/text", "bert", "embedders.text must be one of 'own', "),
    ("vocabulary", 3, "vocabulary must be text: got 3"),
    ("task", None, "task must be text: got None"),
    ("heads", [3], "heads must be text: got 3"),
    ("heads", ["itm", "itm"], "heads must be different names: got itm, itm"),
    ("losses", [[]], "losses must be text: got []"),
    ("labels", [None], "labels must be text: got None"),
    ("frozen_features", ["x"], "frozen_features must be names and values: got ['x']"),
    ("frozen_features", {"image": 1}, "frozen_features.image must be text: got 1"),
    ("imported", {"system": 3, "task": "vqa", "checkpoint": "x"}, "system must be text: got 3"),
    ("imported", {"system": "vilt", "task": "vqa", "checkpoint": "x", "notes": [3]}, "notes must be text: got 3"),
    ("imported", {"system": "vilt", "task": "vqa", "checkpoint": "x", "ignored": {"a": 3}}, "ignored.a must be text"),
    ("imported", {"system": "vilt", "task": "vqa", "checkpoint": "x", "colour": 3}, "config.imported.colour: no such field"),
]  # fmt: skip
"""Values of another type. Tests check types by annotations first, so these are read in a process without them."""


@pytest.mark.slow
def test_a_value_of_another_type_is_named(tmp_path: Path):
    for number, (path, value, _) in enumerate(TYPES):
        write_config(tmp_path / f"{number}", SAVED)
        edit_json(tmp_path / f"{number}" / "config.json", path, value)
    code = """
import sys
from pathlib import Path
from diptych.inference.saved_model import RunError, read_config
for number in range(int(sys.argv[1])):
    try:
        read_config(Path(str(number)))
    except RunError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, str(len(TYPES))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for number, (line, (_, _, message)) in enumerate(zip(done.stdout.splitlines(), TYPES, strict=True)):
        assert line.startswith(f"{Path(str(number)) / 'config.json'}: ") and message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "as its first key"),
        (b'{"model_type": "bert"}', "as its first key.*diptych import"),
        (b'{"hidden_size": 768, "architectures": ["CLIPModel"]}', "as its first key.*diptych import"),
        (b'{"model_type": "diptych"}', "the object lacks 'version'; train or import it again"),
        (b'{"model_type": "diptych", "version": "0.2.0"}', "config.model: required field is missing"),
        (b'{"model_type": "diptych", "version": "0.2.0", ', "not the JSON that was written there"),
        (b'{"model_type": "diptych", "version": "0.2.0", "x": "\xff"}', "is not UTF-8"),
        (b'["model_type", "diptych"]', "the value is a list, not an object"),
        (b'{"model_type": "diptych", "version": "0.2.0", "labels": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"model_type": "diptych", "version": "0.2.0", "model": {"kind": ["ViTConfig"]}}', "got kind"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_saved_model_is_named(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=message) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_config_is_named(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"no config\.json there; give the folder that --out named") as error:
            check_saved(folder)
        assert str(folder) in str(error.value)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(RunError, match=r"no config\.json there"):
        read_config(tmp_path)


def test_a_run_of_version_0_1_is_refused_by_its_version(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"kind": "pretrain", "versions": {"diptych": "0.1.3"}}')
    with pytest.raises(RunError, match=r"run folder of Diptych 0\.1\.3, which .* does not read: train again with"):
        read_config(tmp_path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_every_flipped_bit_is_noticed(seed: int, tmp_path: Path):
    """No other model is read from a damaged config.json, and the error is one line that names it."""
    write_config(tmp_path, SAVED)
    path, draw = tmp_path / "config.json", random.Random(seed)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read_config(tmp_path) == SAVED, f"byte {place}"  # a blank between the values
        except RunError as error:
            assert str(path) in str(error) and "\n" not in str(error), f"byte {place}: {error}"


@pytest.mark.slow
def test_a_huge_config_is_read_or_refused_in_little_time(tmp_path: Path):
    many = [f"label {i}" for i in range(300_000)]
    write_config(tmp_path, SAVED)
    for path in ("labels", "heads", "losses", "imported/notes", "imported/ignored", "frozen_features"):
        saved = replace(SAVED, model=ViTConfig())
        write_config(tmp_path, saved)
        if path.startswith("imported"):
            edit_json(tmp_path / "config.json", "imported", {"system": "vit", "task": "encoder", "checkpoint": "x"})
        named = path in ("imported/ignored", "frozen_features")
        edit_json(tmp_path / "config.json", path, dict.fromkeys(many, "x") if named else many)
        began = time.process_time()
        read_config(tmp_path)
        assert time.process_time() - began < 10, path


@pytest.mark.slow
def test_reading_a_config_imports_no_torch(tmp_path: Path):
    write_config(tmp_path, SAVED)
    code = (
        "import sys; from pathlib import Path; from diptych.inference.saved_model import read_config\n"
        "assert read_config(Path(sys.argv[1])).heads == ('itm', 'mlm') and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
