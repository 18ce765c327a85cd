"""ALBEF's and BLIP's files without the momentum model: the student is imported; a part of the teacher is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.adapter import State
from diptych.checkpoints.read import WeightsError, load_state_dict
from diptych.models.importing import identify_system, map_official
from diptych.protocols import student_of
from tests.parity.goldens import GOLDEN_CASES

CASES = ("albef_pretrain", "albef_retrieval", "albef_ve", "albef_vqa", "albef_nlvr2", "blip_pretrain", "blip_retrieval")


def state_of(name: str) -> dict[str, Tensor]:
    folder = (
        GOLDEN_CASES / name if (GOLDEN_CASES / name).is_dir() else Path(os.environ.get("DIPTYCH_GOLDENS", "")) / name
    )
    if not folder.is_dir():
        pytest.skip(f"set DIPTYCH_GOLDENS to the folder of golden cases to check {name}")
    return load_state_dict(folder / "checkpoint.pth")


def config_of(name: str) -> dict[str, dict[str, int]]:
    """The numbers of heads of a golden; in two of ALBEF's, those of the encoders differ."""
    image, text = {"albef_vqa": (5, 5), "albef_nlvr2": (4, 5)}.get(name, (4, 4))
    return {"vision": {"heads": image}, "text": {"num_attention_heads": text}}


def is_momentum(name: str) -> bool:
    return name.partition(".")[0].endswith(("_m", "queue", "queue_ptr"))


@pytest.mark.quick("albef_pretrain", "blip_pretrain")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_a_student_without_its_momentum_model_is_imported(name: str):
    state = state_of(name)
    stripped = {n: t for n, t in state.items() if not is_momentum(n)}
    assert identify_system(stripped) == name.partition("_")[0] and len(stripped) < 0.7 * len(state)
    imported, full = (map_official(identify_system(state), x, config_of(name)) for x in (stripped, state))
    assert (imported.task, imported.arguments) == (full.task, full.arguments)
    step, student = imported.build(), student_of(full.build())
    assert type(step) is type(student) and not hasattr(step, "student")
    ours, theirs = step.state_dict(), student.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    back = imported.names.to_official(imported.state) | imported.ignored_tensors
    assert same(back, stripped)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    ("remaining", "message"),
    [
        (("visual_encoder_m.norm.weight",), r"missing weights: queue\.image"),
        (("image_queue", "text_queue", "queue_ptr"), r"does not fit: missing: teacher\.model\.image"),
    ],
)
@pytest.mark.slow
def test_a_part_of_the_momentum_model_raises(remaining: tuple[str, ...], message: str):
    stripped = {n: t for n, t in state_of("albef_pretrain").items() if n in remaining or not is_momentum(n)}
    with pytest.raises(WeightsError, match=message):
        map_official("albef", stripped, config_of("albef_pretrain"))
