"""Untrained runs of toy size that caption, answer, score and embed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diptych.runs import build as building
from diptych.runs import finetune
from diptych.runs.recipes import recipe
from diptych.tasks.definition import Labels
from tests.models.test_finetuning_recipes import ANSWERS, small
from tests.models.test_first_step import toy
from tests.runs.tiny_runs import write_model


def with_vocabulary(model: Any, full: Any) -> Any:
    """A toy model with the vocabulary of the full one, which the bundled tokenizers have."""
    names = {"vocab_size", "bos_token_id", "enc_token_id", "mask_token_id", "text_length"}
    return replace(model, **{name: getattr(full, name) for name in names if hasattr(full, name)})


def untrained(folder: Path, name: str = "blip.pretrain_14m", seed: int = 0) -> Path:
    """The folder of an untrained run; BLIP's has the objectives itc, itm and lm."""
    full = recipe(name)
    run = toy(full)
    run = replace(run, training=replace(run.training, seed=seed))
    run = replace(run, model=with_vocabulary(run.model, full.model), images=replace(run.images, shorter_side=32))
    return write_model(folder, run, building.build(run))


def untrained_vqa(folder: Path, name: str = "vilt.vqa") -> Path:
    """The folder of an untrained run that answers questions with one of a few answers."""
    torch.manual_seed(0)
    full = recipe(name, "Finetune")
    run, _ = small(full)
    run = replace(run, model=with_vocabulary(run.model, full.model), images=replace(run.images, shorter_side=32))
    return write_model(folder, run, finetune.build(run, Labels(tuple(ANSWERS))), ANSWERS)
