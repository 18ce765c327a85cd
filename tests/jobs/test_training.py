"""What is held out: missing it may be, not broken; and its losses are the same on any number of ranks."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from diptych.data.examples import PairExamples
from diptych.data.files import open_captions
from diptych.data.settings import ImageSettings
from diptych.data.source import DataError
from diptych.data.tokenizer import Tokenizer
from diptych.jobs.training import held_out_means, opened
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.pretraining import Pretraining
from diptych.step import Step
from diptych.train.distributed import Group

sys.path.insert(0, str(Path(__file__).parents[1] / "systems"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from battery_parts import batch_of
from systems import clip


def val_of(folder: Path) -> PairExamples:
    return PairExamples(open_captions(str(folder), "val"), Tokenizer(), ImageSettings(), 0.0)


def test_only_a_split_that_is_missing_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "0.jpg").write_bytes(b"")
    (tmp_path / "captions_train.csv").write_text("image,caption\n0.jpg,a dog\n")
    assert opened(partial(val_of, tmp_path), quiet=False) is None
    assert "nothing is held out" in capsys.readouterr().out
    (tmp_path / "captions_val.csv").write_text("image,caption\n1.jpg,a dog\n")
    with pytest.raises(DataError, match=r"captions_val.csv, line 2: image '1.jpg' is missing"):
        opened(partial(val_of, tmp_path), quiet=False)


def means(group: Group) -> dict[str, float]:
    """Of three batches of other sizes, by a model that contrasts."""
    torch.manual_seed(0)
    model: Any = clip.SYSTEMS["clip"].small()
    step = Pretraining(model, model.heads(), [ImageTextContrast()]).eval()
    return held_out_means(cast(Step, step), [batch_of(b, seed=b) for b in (4, 6, 3)], group, "fp32")


def _on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(means(Group(torch.device("cpu"), rank, 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_held_out_losses_do_not_depend_on_the_number_of_ranks(tmp_path: Path):
    mp.spawn(_on_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    one = means(Group(torch.device("cpu")))
    assert "itc" in one
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(one, rel=1e-5)
