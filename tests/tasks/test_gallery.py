"""A gallery contains each image once with all its captions, whatever rows the dataset lists them in."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.cli import main
from diptych.config.objectives import LM, Objectives
from diptych.config.tasks import Captioning
from diptych.data.sources.captions import open_captions
from diptych.models.configs import CoCaConfig
from diptych.models.vilt import recipes as vilt
from diptych.runs.build import build
from diptych.tasks.captioning import evaluate
from diptych.tasks.gallery import open_gallery
from tests.runs.tiny_runs import loaded_from

IMAGES, CAPTIONS = 7, 3
PATHS = ("{}.png", "./{}.png", "images/{}.png", "copies/{}.png", "copies/./{}.png")
SMALL = ["--model.dim", "16", "--model.depth", "1", "--model.num_heads", "2", "--model.mlp_dim", "32", "--model.text_length", "24"]  # fmt: skip
CONFIG = Captioning(split="val", max_length=9, workers=0, device="cpu", precision="fp32")
COCA = CoCaConfig(
    dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=16, grid=(5, 7), num_queries=3, pool_num_heads=2, text_dim=16, text_depth=1,
    text_num_heads=2, text_mlp_dim=32, vocab_size=114, text_length=24, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=32,
    embed_dim=8,
)  # fmt: skip

Pair = tuple[int, str]  # image index and caption


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as image files, with a copy of each file in another folder."""
    folder, scenes = tmp_path_factory.mktemp("photos"), open_captions("scenes:20", "train")
    for subfolder in ("images", "copies"):
        (folder / subfolder).mkdir()
        for i in range(IMAGES):
            scenes.image(i).save(folder / subfolder / f"{i}.png")
    return folder


def pairs() -> list[Pair]:
    scenes = open_captions("scenes:20", "train")
    return [(i, text) for i in range(IMAGES) for text in scenes.captions(i)[:CAPTIONS]]


def merged(folder: Path, _: list[Pair], draw: random.Random) -> str:
    """Karpathy's JSON with one entry per image, which has all captions."""
    images = [{"filename": f"{i}.png", "split": "val", "sentences": []} for i in range(IMAGES)]
    for i, text in pairs():
        images[i]["sentences"].append({"raw": text})  # type: ignore[attr-defined]
    (folder / "dataset_merged.json").write_text(json.dumps({"images": images}))
    return str(folder / "dataset_merged.json")


def karpathy(folder: Path, rows: list[Pair], draw: random.Random) -> str:
    images = [
        {"filename": draw.choice(PATHS).format(i), "split": "val", "sentences": [{"raw": text}]} for i, text in rows
    ]
    (folder / "dataset_rows.json").write_text(json.dumps({"images": images}))
    return str(folder / "dataset_rows.json")


def coco(folder: Path, rows: list[Pair], draw: random.Random) -> str:
    images = [{"id": at, "file_name": draw.choice(PATHS).format(i)} for at, (i, _) in enumerate(rows)]
    annotations = [{"image_id": at, "caption": text} for at, (_, text) in enumerate(rows)]
    (folder / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return str(folder / "captions_val2014.json")


def table(folder: Path, rows: list[Pair], draw: random.Random) -> str:
    table_rows = [{"image": draw.choice(PATHS).format(i), "caption": text, "split": "valid"} for i, text in rows]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, table_rows)))
    return str(folder / "rows.jsonl")


def tars(folder: Path, rows: list[Pair], draw: random.Random) -> str:
    half = len(rows) // 2
    for shard, part in enumerate((slice(half), slice(half, None))):
        with tarfile.open(folder / f"val-{shard}.tar", "w") as tar:
            for at, (i, text) in list(enumerate(rows))[part]:
                for suffix, data in (("png", (folder / f"images/{i}.png").read_bytes()), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{at:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / "val-{0..1}.tar")


Writer = Callable[[Path, list[Pair], random.Random], str]
ROWS = [karpathy, coco, table, tars]


@given(st.sampled_from(ROWS), st.randoms(use_true_random=False), st.permutations(range(IMAGES * CAPTIONS)))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_rows_in_any_order_and_path_spelling_make_the_same_gallery(
    folder: Path, write: Writer, draw: random.Random, order: list[int]
):
    rows = pairs()
    gallery = open_gallery(replace(CONFIG, data=write(folder, [rows[k] for k in order], draw)), 80)
    scenes = open_captions("scenes:20", "train")
    captions = {gallery.image(i).tobytes(): sorted(gallery.captions(i)) for i in range(len(gallery))}
    assert len(captions) == len(gallery) == IMAGES
    for i in range(IMAGES):
        assert captions[scenes.image(i).tobytes()] == sorted(scenes.captions(i)[:CAPTIONS])
    few = open_gallery(replace(CONFIG, data=write(folder, rows, draw), gallery=2, captions=2), 80)
    assert [few.image(i).tobytes() for i in range(len(few))] == [scenes.image(i).tobytes() for i in range(2)]
    assert [len(few.captions(i)) for i in range(2)] == [2, 2]


def metrics(run: Path, data: str, *more: str) -> dict[str, Any]:
    """The metrics of `diptych evaluate`; its folder is removed."""
    before = set(run.glob("evaluate-*"))
    options = ["--data", data, "--split", "validation", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
    assert main(["evaluate", str(run), *options, *more]) == 0
    (written,) = set(run.glob("evaluate-*")) - before
    result = json.loads((written / "metrics.json").read_text())["metrics"]
    shutil.rmtree(written)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vilt.tiny", "vlmo.tiny"])  # by fusion; by similarity and re-ranking
def test_recall_of_separate_rows_equals_that_of_merged_rows_at_the_command_line(
    folder: Path, tmp_path: Path, recipe: str
):
    fusion = ["--model.vl_start_layer", "0"] if recipe == "vlmo.tiny" else []
    run = [
        "pretrain",
        recipe,
        *SMALL,
        *fusion,
        "--data",
        "scenes:20",
        "--batch_size",
        "8",
        "--steps",
        "2",
        "--workers",
        "0",
    ]
    assert main([*run, "--device", "cpu", "--precision", "fp32", "--out", str(tmp_path / "run")]) == 0
    draw = random.Random(1)
    more = ["--task", "retrieval", "--rerank", "4"]
    expected = metrics(tmp_path / "run", merged(folder, [], draw), *more)
    assert (expected["images"], expected["texts"]) == (IMAGES, IMAGES * CAPTIONS)
    for write in (table, tars):
        rows = pairs()
        draw.shuffle(rows)
        assert metrics(tmp_path / "run", write(folder, rows, draw), *more) == expected, write.__name__


@torch.no_grad()
@pytest.mark.parametrize("write", ROWS)
def test_all_captions_of_an_image_are_its_references(folder: Path, write: Writer):
    run = replace(vilt.tiny(), model=COCA, objectives=Objectives(lm=LM()))
    module, draw = build(run).eval(), random.Random(2)

    def scored(data: str) -> dict[str, float]:
        return evaluate(loaded_from(run, module), replace(CONFIG, data=data)).metrics

    expected, rows = scored(merged(folder, [], draw)), pairs()
    draw.shuffle(rows)
    metrics = scored(write(folder, rows, draw))
    assert metrics == pytest.approx(expected) and metrics["references"] == IMAGES * CAPTIONS
