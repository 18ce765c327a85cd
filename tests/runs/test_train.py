"""Validation during training, precision and settings of a resumed run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from diptych.checkpoints.digests import CheckpointError
from diptych.cli import main
from diptych.config.data import ImageSettings
from diptych.config.objectives import MLM, FullImage, NoImage, Objectives
from diptych.config.training import defaults
from diptych.data.examples import PairExamples
from diptych.data.sources.base import DataError
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.models.vlmo import recipes as vlmo
from diptych.objectives.itc import ITCLoss
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import TrainStep
from diptych.runs.train import identity, open_validation, validation_means
from diptych.training.checkpoint import check_same_settings
from diptych.training.distributed import Group
from diptych.training.step import OptimizerStep
from tests.models.systems import clip
from tests.models.systems.common import batch_of
from tests.runs.tiny_runs import pretrain


def val_of(folder: Path) -> PairExamples:
    return PairExamples(open_captions(str(folder), "val"), Tokenizer(), ImageSettings(), 0.0)


def test_a_missing_val_split_is_allowed_and_a_broken_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "0.jpg").write_bytes(b"")
    (tmp_path / "captions_train.csv").write_text("image,caption\n0.jpg,a dog\n")
    assert open_validation(partial(val_of, tmp_path), quiet=False) is None
    assert "no validation during training" in capsys.readouterr().out
    (tmp_path / "captions_val.csv").write_text("image,caption\n1.jpg,a dog\n")
    with pytest.raises(DataError, match=r"captions_val.csv, line 2: image '1.jpg' is missing"):
        open_validation(partial(val_of, tmp_path), quiet=False)


def means(group: Group) -> dict[str, float]:
    """Validation means of ITC over three batches of different sizes."""
    torch.manual_seed(0)
    model: Any = clip.SYSTEMS["clip"].small()
    step = Pretraining(model, model.pretraining_heads(), [ITCLoss()]).eval()
    return validation_means(cast(TrainStep, step), [batch_of(b, seed=b) for b in (4, 6, 3)], group, "fp32")


def _on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(means(Group(torch.device("cpu"), rank, 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_validation_means_do_not_depend_on_the_number_of_ranks(tmp_path: Path):
    mp.spawn(_on_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    one = means(Group(torch.device("cpu")))
    assert "itc" in one
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_precision_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Started where `auto` is bf16, interrupted in the last of four steps, and resumed where it is fp32."""
    computed, update = list[tuple[int, bool]](), OptimizerStep.__call__

    def advance(self: OptimizerStep, step: int, *rest: Any) -> Any:
        computed.append((step, self.autocast._enabled))
        if computed.count((3, True)) == 1 and step == 3:
            raise KeyboardInterrupt
        return update(self, step, *rest)

    monkeypatch.setattr(OptimizerStep, "__call__", advance)
    words = pretrain(tmp_path / "run", steps=4)
    words[words.index("--precision") + 1] = "auto"
    monkeypatch.setenv("DIPTYCH_BF16", "on")
    assert main(words) == 130
    capsys.readouterr()
    monkeypatch.setenv("DIPTYCH_BF16", "off")
    assert main(words) == 0
    assert f"{tmp_path / 'run'} was started in bf16 and resumes in it" in capsys.readouterr().out
    assert computed[-1] == (3, True) and all(bf16 for _, bf16 in computed)


@pytest.mark.slow
def test_a_run_json_that_does_not_belong_to_the_checkpoint_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(pretrain(tmp_path / "a", steps=2)) == 0
    assert main(pretrain(tmp_path / "b", "--seed", "5", steps=2)) == 0
    (tmp_path / "a" / "run.json").write_bytes((tmp_path / "b" / "run.json").read_bytes())
    capsys.readouterr()
    assert main(pretrain(tmp_path / "a", steps=2)) == 2
    assert f"{tmp_path / 'a'} contains a run with seed = 5, not 0" in capsys.readouterr().err


def test_members_of_a_union_without_fields_differ_in_a_run_s_identity():
    """Else a run on texts would be resumed as one on pairs: neither `FullImage` nor `NoImage` has a field."""
    run = vlmo.base()
    pairs, texts = (replace(run, objectives=Objectives(mlm=MLM(image=image))) for image in (FullImage(), NoImage()))
    assert identity(pairs) == identity(replace(pairs, recipe="other")) != identity(texts)
    with pytest.raises(CheckpointError, match=r"objectives\.mlm\.image\.kind = FullImage, not NoImage"):
        check_same_settings(Path("run"), identity(pairs), identity(texts), defaults(texts))
