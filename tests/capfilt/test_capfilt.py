"""CapFilt: decisions about pairs, near duplicates, resumed and parallel runs with equal output, damaged data."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.capfilt import filter as filtering
from diptych.capfilt import run
from diptych.capfilt.corrupt_captions import corrupt_captions
from diptych.capfilt.filter import Verdict, decide
from diptych.capfilt.near_duplicates import FeatureIndex
from diptych.capfilt.run import capfilt
from diptych.capfilt.score import json_line
from diptych.cli import main
from diptych.config.capfilt import CapFilt, CorruptCaptions
from diptych.config.objectives import ITC, LM, Objectives
from diptych.data.images.transforms import stack, transform
from diptych.data.sources.captions import open_captions
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.runs.load_model import load_model
from diptych.training.checkpoint import CheckpointError
from tests.capfilt.tiny_capfilt import TINY, files, image_bytes, rows, saved, write_tar
from tests.runs.tiny_runs import ENVIRONMENT


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("runs") / "blip")


@pytest.fixture(scope="module")
def noised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes in three tars; half of the captions are of other images."""
    out = tmp_path_factory.mktemp("noised")
    assert corrupt_captions(CorruptCaptions(data="scenes:24", shard_size=8), out) == (60, 120)
    return out


@pytest.fixture(scope="module")
def config(role: str, noised: Path, tmp_path_factory: pytest.TempPathFactory) -> CapFilt:
    """A config whose threshold half of the synthetic texts pass."""
    data = str(noised / "train-{00000..00002}.tar")
    config = CapFilt(data, role, role, batch_size=5, workers=0, device="cpu", precision="fp32")
    capfilt(config, out := tmp_path_factory.mktemp("any"))
    return replace(config, min_itm=float(np.median([r["synthetic"]["itm"] for r in rows(out / "decisions.jsonl")])))


@pytest.fixture(scope="module")
def done(config: CapFilt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    capfilt(config, out)
    return out


def test_a_model_that_captions_and_filters_computes_in_one_context(
    config: CapFilt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """That of every command, in which weights are cast once."""
    computing, contexts = LoadedModel.computing, []
    monkeypatch.setattr(
        LoadedModel, "computing", lambda loaded, bf16: (contexts.append(bf16), computing(loaded, bf16))[1]
    )
    capfilt(config, tmp_path)
    assert contexts == [False]


# -- decisions ------------------------------------------------------------------------------------------------------

IMAGE = {"key": "k", "index": 3, "where": "here"}


def decided(
    *texts: dict[str, Any], synthetic: dict[str, Any] | None = None, **settings: Any
) -> tuple[list[str], list[str]]:
    named = [{"text": f"t{i}", **text} for i, text in enumerate(texts)]
    written = None if synthetic is None else {"text": "new", **synthetic}
    decision = decide(IMAGE | {"texts": named, "synthetic": written}, CapFilt(**settings))
    return [pair["decision"] for pair in decision.pairs], decision.texts


def test_a_text_is_kept_if_its_score_exceeds_the_threshold():
    assert decided({"itm": 0.51}, {"itm": 0.5}, {"itm": 0.9}) == (["kept", "dropped", "kept"], ["t0", "t2"])
    assert decided({"itm": 0.51}, {"itm": 0.9}, min_itm=0.6) == (["dropped", "kept"], ["t1"])


def test_a_dropped_text_is_replaced_by_a_synthetic_one_that_passes():
    low, high = {"itm": 0.1}, {"itm": 0.9}
    assert decided(low, synthetic=high) == (["re-captioned"], ["new"])
    assert decided(low, synthetic=low) == (["dropped"], [])
    assert decided(high, low, synthetic=high) == (["kept", "re-captioned"], ["t0", "new"])
    assert decided(high, synthetic=high) == (["kept"], ["t0", "new"])  # as in the paper


def test_a_synthetic_text_may_only_fill_gaps():
    low, high = {"itm": 0.1}, {"itm": 0.9}
    row = IMAGE | {"texts": [{"text": "t0", **high}], "synthetic": {"text": "new", **high}}
    assert decide(row, CapFilt(synthetic="replace")).texts == ["t0"]
    row["texts"].append({"text": "t1", **low})
    assert decide(row, CapFilt(synthetic="replace")).texts == ["t0", "new"]


def test_both_scores_must_pass_if_both_have_thresholds():
    both = {"itm": 0.9, "cosine": 0.2}
    assert decided(both)[0] == ["kept"]  # by default the cosine has no threshold
    assert decided(both, min_cosine=0.3)[0] == ["dropped"]
    assert decided(both, min_cosine=0.1)[0] == ["kept"]
    assert decided(both, min_cosine=0.1, min_itm=0.95)[0] == ["dropped"]


def test_an_invalid_text_is_dropped_and_an_unscored_one_kept():
    assert decided({"bad": "empty"}, synthetic={"itm": 0.9}) == (["re-captioned"], ["new"])
    assert decided({}, synthetic={}) == (["kept"], ["t0", "new"])
    assert decide(IMAGE | {"bad": "broken"}, CapFilt()) == Verdict(
        [], [IMAGE | {"decision": "skipped", "reason": "broken"}]
    )


def test_reasons_name_the_score_and_the_threshold():
    row = IMAGE | {"texts": [{"text": "a", "itm": 0.25}, {"text": "b", "itm": 0.75}], "synthetic": None}
    reasons = [pair["reason"] for pair in decide(row, CapFilt()).pairs]
    assert reasons == ["itm 0.25 is not over 0.5", "itm 0.75 is over 0.5"]
    alike = decide(row, CapFilt(), {"of": "train-0/x", "cosine": 0.99})
    assert alike.texts == [] and {p["reason"] for p in alike.pairs} == {"the image is like train-0/x (cosine 0.99)"}


# -- near duplicates -----------------------------------------------------------------------------------------------


def test_near_duplicates_equal_those_of_brute_force(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diptych.capfilt.near_duplicates.BLOCK_SIZE", 4)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(23, 6)).astype(np.float32)
    vectors[7], vectors[9], vectors[20] = vectors[2], vectors[2] + 0.01, vectors[8]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stay = random.random(23) > 0.2
    stay[[2, 8]] = True, False
    index, duplicates = FeatureIndex(0.9, torch.device("cpu")), []
    for part in (slice(0, 11), slice(11, 23)):
        numbers = list(range(23))[part]
        duplicates += index.find_and_add(vectors[part], numbers, stay[part].tolist())
    first: list[int] = []
    for i, duplicate in enumerate(duplicates):
        cosines = [float(vectors[i] @ vectors[j]) for j in first]
        over = max(cosines, default=-1.0) > 0.9
        assert (duplicate is not None) == over
        if duplicate is not None:
            assert duplicate.index == first[int(np.argmax(cosines))] and duplicate.cosine == pytest.approx(
                max(cosines), abs=1e-4
            )
        elif stay[i]:
            first.append(i)
    assert (
        duplicates[7] is not None and duplicates[9] is not None and duplicates[9].index == 2
    )  # the first, not the second
    assert duplicates[20] is None  # its neighbour was dropped


def test_at_most_one_block_of_cosines_is_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diptych.capfilt.near_duplicates.BLOCK_SIZE", 4)
    vectors = np.eye(30, dtype=np.float32)
    index, largest = FeatureIndex(0.9, torch.device("cpu")), []
    for at in range(0, 30, 3):  # fewer than a block
        index.add(vectors[at : at + 3], [at, at + 1, at + 2])
    assert [len(block) for block in index.blocks] == [4] * 7 + [2]
    product = torch.Tensor.__matmul__

    def noted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        largest.append(product(a, b).numel())
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    duplicates = index.nearest(vectors[::-1].copy())  # more than a block
    assert [duplicate and duplicate.index for duplicate in duplicates] == list(range(29, -1, -1)) and max(largest) <= 16


# -- end to end ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_pair_has_a_decision_and_kept_texts_are_in_the_shards(done: Path, noised: Path, config: CapFilt):
    decisions, plain = rows(done / "decisions.jsonl"), open_captions(config.data, "train")
    assert [(r["index"], r["caption"], r["text"]) for r in decisions] == [
        (i % 8, k, text) for i in range(24) for k, text in enumerate(plain.captions(i))
    ]
    counts = Counter(r["decision"] for r in decisions)
    assert all(counts[d] for d in ("kept", "re-captioned", "dropped")), counts
    out = open_captions(str(done / "train-{00000..00002}.tar"), "train")
    expected: dict[str, list[str]] = {}
    for r in decisions:
        kept = expected.setdefault(r["key"], [])
        kept += [r["text"]] * (r["decision"] == "kept")
    for key, synthetic in {r["key"]: r["synthetic"] for r in decisions}.items():
        expected[key] += [synthetic["text"]] * (synthetic["itm"] > config.min_itm)
    expected = {key: texts for key, texts in expected.items() if texts}
    written = {m.key: list(m.captions) for m in out.members}  # type: ignore[attr-defined]
    assert written == expected
    images = {plain.where(i).split(", ")[1]: plain.file(i) for i in range(24)}  # type: ignore[attr-defined]
    assert all(out.file(i) == images[m.key] for i, m in enumerate(out.members))  # type: ignore[attr-defined]
    summary = json.loads((done / "summary.json").read_text())
    assert {d: summary[d] for d in counts} == counts and summary["images out"] == len(expected)


@pytest.mark.slow
def test_the_scores_are_those_of_the_filter(done: Path, config: CapFilt):
    judge = load_model(Path(config.filter), torch.device("cpu"))
    model, heads = judge.model, judge.module.heads
    source = open_captions(config.data, "train")
    for row in rows(done / "decisions.jsonl")[::17]:
        at = 8 * int(row["shard"][-1]) + row["index"]
        image = stack([transform(source.image(at), judge.image_settings)], judge.image_settings)
        for decided in (row, row["synthetic"]):
            with torch.no_grad():
                tokens, text = (
                    model.encode_image(image),
                    model.encode_text(judge.tokenizer.encode([decided["text"]])),
                )
                probability = heads["itm"](model.fuse(text, tokens).pooled).softmax(1)[0, 1]  # type: ignore[index]
                contrast: Any = heads["itc"]  # type: ignore[index]
                cosine = (
                    contrast.project_image(model.pooled_features(tokens)[0])
                    @ contrast.project_text(model.pooled_features(text)[0]).T
                )
            assert decided["itm"] == pytest.approx(probability.item(), abs=1e-5)
            assert decided["cosine"] == pytest.approx(cosine.item(), abs=1e-5)


@pytest.mark.slow
def test_the_report_shows_images_of_each_decision(done: Path):
    page = (done / "report.html").read_text()
    images = {(r["decision"], r["key"]) for r in rows(done / "decisions.jsonl")}
    for decision in ("kept", "re-captioned", "dropped"):
        count = page.count(f"<h3><bdi>{decision}</bdi></h3>")
        assert count == min(8, sum(d == decision for d, _ in images)) > 0
    assert page.count("<svg") == 2  # as many as there are scores


@pytest.mark.slow
def test_generated_captions_depend_only_on_seed_and_sample(done: Path, config: CapFilt, tmp_path: Path):
    def written(out: Path) -> list[str]:
        return [r["synthetic"]["text"] for r in rows(out / "decisions.jsonl")]

    capfilt(replace(config, batch_size=3), tmp_path / "batch")
    assert written(tmp_path / "batch") == written(done)
    capfilt(replace(config, seed=1), tmp_path / "seed")
    assert written(tmp_path / "seed") != written(done)
    capfilt(replace(config, decoding="beam_search", prompt="a red"), tmp_path / "beams")
    capfilt(replace(config, decoding="greedy"), tmp_path / "greedy")
    assert len({tuple(written(o)) for o in (done, *(tmp_path / n for n in ("seed", "beams", "greedy")))}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("used", ["captioner", "filter"])
def test_captioner_and_filter_work_separately(config: CapFilt, tmp_path: Path, used: str):
    summary = capfilt(replace(config, **{"captioner": "", "filter": ""} | {used: config.filter}), tmp_path)
    assert summary["re-captioned"] == 0 and (summary["dropped"] == 0) == (used == "captioner")
    assert summary["images synthetic that pass"] == (24 if used == "captioner" else 0)


@pytest.mark.slow
def test_data_that_is_not_in_tars_is_written_as_tars(config: CapFilt, tmp_path: Path):
    summary = capfilt(replace(config, data="scenes:24", split="train", shard_size=10, min_itm=0.0), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == [f"train-{i:05d}.tar" for i in range(3)]
    assert summary["kept"] == 120 and len(open_captions(str(tmp_path / "train-*.tar"), "train")) == 24


# -- resumed and parallel --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("writes", [1, 3, 6, 7, 10, 14, 17])
def test_a_resumed_run_writes_the_same_files(
    done: Path, config: CapFilt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
):
    true, left = os.replace, [writes]

    def stopping(a: str, b: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        true(a, b)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            capfilt(config, tmp_path)
    capfilt(config, tmp_path)
    assert files(tmp_path) == files(done)


@pytest.mark.slow
def test_finished_shards_are_not_processed_again(done: Path, config: CapFilt, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "load_model", lambda *_: pytest.fail("a run was loaded"))
    monkeypatch.setattr(filtering, "write_shard", lambda *_: pytest.fail("a shard was written"))
    before = files(done)
    capfilt(config, done)
    assert files(done) == before


@pytest.mark.slow
def test_two_processes_write_the_same_files_as_one(done: Path, config: CapFilt, tmp_path: Path):
    words = [
        "capfilt",
        config.data,
        "--captioner",
        config.captioner,
        "--filter",
        config.filter,
        "--min_itm",
        str(config.min_itm),
    ]
    words += ["--batch_size", "5", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--out", str(tmp_path)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "diptych", *words],
            env=ENVIRONMENT | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert "kept" in outputs[0] and outputs[1] == ""
    assert files(tmp_path) == files(done)


# -- damaged data and errors ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bad_samples_are_skipped_and_listed(role: str, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    members = {"../../escape.jpg": image_bytes(0), "../../escape.txt": b"a red house"}
    members |= {"broken.jpg": b"not an image", "broken.txt": b"a cup", "lonely.jpg": image_bytes(1)}
    members |= {
        "empty.jpg": image_bytes(2),
        "empty.txt": b" ",
        "linked.jpg": image_bytes(3),
        "good.jpg": image_bytes(4),
        "good.txt": b"a cup",
    }
    write_tar(tmp_path / "cc.tar", members, {"linked.txt": str(tmp_path / "secret.txt")})
    config = CapFilt(
        str(tmp_path / "cc.tar"), role, role, min_itm=0.0, batch_size=5, workers=0, device="cpu", precision="fp32"
    )
    summary = capfilt(config, tmp_path / "out")
    skipped = {row["where"].split(", ")[1]: row["reason"] for row in rows(tmp_path / "out" / "skipped.jsonl")}
    assert skipped.keys() == {"broken", "lonely", "linked"} and summary["skipped"] == 3
    assert skipped["broken"].startswith("not a readable image") and skipped["lonely"].startswith("no caption")
    decisions = {row["where"].split(", ")[1]: row for row in rows(tmp_path / "out" / "decisions.jsonl")}
    assert decisions["empty"]["decision"] == "re-captioned" and "empty caption" in decisions["empty"]["reason"]
    with tarfile.open(tmp_path / "out" / "cc.tar") as tar:
        assert len(tar.getnames()) == 6 and all(n[0].isalnum() and ".." not in n for n in tar.getnames())
        assert all(member.isreg() for member in tar)
        assert b"secret" not in (tmp_path / "out" / "cc.tar").read_bytes()
    assert "broken: not a readable image" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_damaged_data_does_not_end_a_run(config: CapFilt, tmp_path: Path):
    """Tars: truncated, overwritten in the middle, without a usable sample, with too large images, too long captions."""
    good = {
        f"{i}.{suffix}": data for i in range(4) for suffix, data in (("jpg", image_bytes(i)), ("txt", b"a red house"))
    }
    for name in ("a", "b", "whole"):
        write_tar(tmp_path / f"{name}.tar", good)
    data = (tmp_path / "a.tar").read_bytes()
    third = data.index(b"2.jpg\0")
    (tmp_path / "a.tar").write_bytes(data[: third + 700])
    (tmp_path / "b.tar").write_bytes(data[:third] + b"x" * 512 + data[third + 512 :])
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    huge = io.BytesIO()
    Pillow.new("1", (12_000, 12_000)).save(huge, "PNG")
    large = {
        "huge.png": huge.getvalue(),
        "huge.txt": b"a cup",
        "long.jpg": image_bytes(1),
        "long.txt": b"x" * 1_000_001,
    }
    large |= {
        "/abs/olute.jpg": image_bytes(2),
        "/abs/olute.txt": b"a cup",
        "bad/../../up.jpg": image_bytes(3),
        "bad/../../up.txt": b"a",
    }
    write_tar(tmp_path / "hard.tar", large)
    spec = str(tmp_path / "{a,b,none,hard,whole}.tar")
    summary = capfilt(replace(config, data=spec, min_itm=0.0, against=spec, against_split=""), tmp_path / "out")
    skipped = {
        Path(row["where"].split(", ")[0]).stem + row["where"].rpartition(".tar")[2]: row["reason"]
        for row in rows(tmp_path / "out" / "skipped.jsonl")
    }
    assert skipped.keys() == {"a", "a, 2", "b", "none", "hard, huge", "hard, long"} and summary["skipped"] == 6
    assert all("the rest is lost" in skipped[tar] for tar in ("a", "b", "none"))
    assert "12000 x 12000 pixels" in skipped["hard, huge"] and "1000001 bytes" in skipped["hard, long"]
    assert summary["images out"] == 2 + 2 + 4 + 2
    for tar, n in {"a": 2, "b": 2, "none": 0, "hard": 2, "whole": 4}.items():
        with tarfile.open(tmp_path / "out" / f"{tar}.tar") as written:
            names = written.getnames()
        assert len(names) == 2 * n and not any(".." in name or name.startswith("/") for name in names)


@pytest.mark.slow
def test_duplicates_and_leaks_are_listed_or_dropped(config: CapFilt, tmp_path: Path):
    members: dict[str, bytes] = {}
    for key, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 3)):
        members |= {f"{key}.jpg": image_bytes(seed), f"{key}.txt": b"a red house"}
    write_tar(tmp_path / "cc.tar", members)
    write_tar(tmp_path / "heldout-test.tar", {"x.jpg": image_bytes(3), "x.txt": b"a cup"})
    config = replace(config, data=str(tmp_path / "cc.tar"), min_itm=0.0, duplicate_cosine=0.99999, synthetic="replace")
    config = replace(config, against=str(tmp_path / "heldout-test.tar"))
    summary = capfilt(config, tmp_path / "listed")
    similar = {row["key"]: row for row in rows(tmp_path / "listed" / "similar.jsonl")}
    assert similar.keys() == {"c", "d"} and (summary["duplicates"], summary["leaks"], summary["images out"]) == (
        1,
        1,
        4,
    )
    assert (similar["c"]["kind"], similar["c"]["of"]) == ("duplicate", "cc/a")
    assert similar["d"]["kind"] == "leak" and similar["d"]["of"].endswith("heldout-test.tar, x")
    leak, duplicate = (tmp_path / "listed" / "report.html").read_text().split('<article class="near-duplicates">')[1:]
    for section, row in ((leak, similar["d"]), (duplicate, similar["c"])):
        assert section.count("<img") == 2 and row["of"] in section and row["where"] in section
    older = tmp_path / "listed" / "parts" / "cc.similar.jsonl"  # an older version's, without the location
    older.write_text("".join(json_line({k: v for k, v in row.items() if k != "of_shard"}) for row in similar.values()))
    assert capfilt(config, tmp_path / "listed") == summary
    assert 'class="near-duplicates"' not in (tmp_path / "listed" / "report.html").read_text()
    summary = capfilt(replace(config, duplicates="drop", leaks="drop"), tmp_path / "dropped")
    out = open_captions(str(tmp_path / "dropped" / "cc.tar"), "train")
    assert summary["images out"] == 2 and summary["dropped"] == 2
    assert {m.key for m in out.members} <= {"a", "b"}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_resumed_run_must_have_the_same_settings(config: CapFilt, done: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"min_itm = 0\.\d+, not 0\.9"):
        capfilt(replace(config, min_itm=0.9), done)
    other = saved(tmp_path / "other", replace(TINY, training=replace(TINY.training, seed=1)))
    with pytest.raises(CheckpointError, match="captioner"):
        capfilt(replace(config, captioner=other), done)


@pytest.mark.slow
def test_scored_reuses_scores_with_other_filter_settings(config: CapFilt, done: Path, tmp_path: Path, monkeypatch):
    other = replace(config, min_itm=0.0, synthetic="replace")
    capfilt(other, tmp_path / "anew")
    monkeypatch.setattr(run, "load_model", lambda *_: pytest.fail("a run was loaded"))
    capfilt(replace(other, scored=str(done)), tmp_path / "scored")
    same = [
        {n: b for n, b in files(tmp_path / out).items() if n.endswith(".tar") or "/" not in n}
        for out in ("anew", "scored")
    ]
    for listing in same:
        listing.pop("capfilt.json")
    assert same[0] == same[1] and not list((tmp_path / "scored" / "parts").glob("*.npy"))
    with pytest.raises(CheckpointError, match="seed = 0, not 1"):
        capfilt(replace(other, scored=str(done), seed=1), tmp_path / "x")
    with pytest.raises(RunError, match=r"capfilt\.json: cannot be read"):
        capfilt(replace(other, scored=str(tmp_path)), tmp_path / "x")
    (tmp_path / "anew" / "parts" / "train-00001.jsonl").unlink()
    with pytest.raises(RunError, match="1 of 3 shards are not scored yet"):
        capfilt(replace(other, scored=str(tmp_path / "anew")), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def error_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["capfilt", *words]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.slow
def test_errors_are_one_line(config: CapFilt, role: str, pretrained: Path, noised: Path, tmp_path: Path, capsys):
    data, out = config.data, ("--out", str(tmp_path / "out"), "--workers", "0")
    assert "give --captioner RUN, --filter RUN" in error_line(capsys, data, *out)
    assert "caption: this ViLT has no text decoder" in error_line(capsys, data, "--captioner", str(pretrained), *out)
    assert "no config.json there" in error_line(capsys, data, "--filter", str(tmp_path), *out)
    assert "no such shard" in error_line(capsys, str(tmp_path / "x.tar"), "--filter", role, *out)
    assert "would be overwritten" in error_line(capsys, data, "--filter", role, "--out", str(noised))
    assert "did you mean --captioner" in error_line(capsys, data, "--captoiner", role, *out)
    lm = saved(tmp_path / "lm", replace(TINY, objectives=Objectives(lm=LM())))
    assert "was not trained to match images and texts (its objectives: lm)" in error_line(
        capsys, data, "--filter", lm, *out
    )
    assert not (tmp_path / "out").exists()  # so that the settings of the corrected command are equal
    write_tar(tmp_path / "broken.tar", {"1.jpg": b"x", "1.txt": b"a cup"})
    assert "none of 1 samples can be used" in error_line(capsys, str(tmp_path / "broken.tar"), "--filter", role, *out)


@pytest.mark.slow
def test_a_filter_with_itc_only_needs_min_cosine(config: CapFilt, tmp_path: Path):
    contrast = saved(tmp_path / "itc", replace(TINY, objectives=Objectives(itc=ITC())))
    config = replace(config, captioner="", filter=contrast)
    with pytest.raises(RunError, match="give --min_cosine"):
        capfilt(config, tmp_path / "a")
    summary = capfilt(replace(config, min_cosine=0.0), tmp_path / "b")
    decisions = rows(tmp_path / "b" / "decisions.jsonl")
    assert all("itm" not in r and (r["decision"] == "kept") == (r["cosine"] > 0) for r in decisions)
    assert summary["kept"] + summary["dropped"] == 120


@pytest.mark.slow
def test_the_truth_of_corrupted_captions_is_that_of_the_clean_data(noised: Path, tmp_path: Path):
    truth, plain = rows(noised / "truth.jsonl"), open_captions("scenes:24", "train")
    source = open_captions(str(noised / "train-{00000..00002}.tar"), "train")
    texts = [text for i in range(24) for text in source.captions(i)]
    assert sum(row["is_original"] for row in truth) == 60
    for row, text in zip(truth, texts, strict=True):
        assert plain.captions(int(row["source_image"]))[row["source_caption"]] == text
        assert row["is_original"] == (row["source_image"] == row["key"])
    with pytest.raises(ValueError, match=r"shard_size must be in \[1, 2147483647\]: got 0"):
        CorruptCaptions(data="scenes:24", shard_size=0)
    assert main(["corrupt-captions", "scenes:24", "--out", str(tmp_path / "again"), "--shard_size", "8"]) == 0
    assert files(tmp_path / "again") == files(noised)
