"""Published parameter counts equal those of the steps that the official checkpoints are loaded into."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.models.configs import PUBLISHED
from diptych.models.importing import ADAPTERS
from diptych.protocols import student_of

Heads = dict[str, tuple[int, ...]]
QUEUE: Heads = {"queue.image": (65536, 256)}
VQA: Heads = {"head.answers.weight": (3129, 1536)}
ALL: Heads = {f"heads.{name}.": (1,) for name in ("itm", "mlm", "itc", "itc_vl")}
LARGER = {"grid": (16, 16)}
JOBS: dict[str, list[tuple[str, dict[str, Any], Heads, bool]]] = {
    "albef": [
        ("pretraining", LARGER, QUEUE, True),
        ("vqa", {"grid": (14, 14), "decoder_depth": 6}, {}, True),
        ("nlvr2", {"grid": (14, 14), "num_images": 2}, {}, True),
    ],
    "vlmo": [("pretraining", {"depth": 12, "vl_start_layer": 10}, ALL, False), ("vqa", {}, VQA, False)],
    "blip": [
        ("pretraining", {"variant": "pretraining"}, QUEUE, False),
        ("retrieval", {"variant": "retrieval"}, QUEUE, False),
        ("vqa", {"variant": "vqa"}, {}, False),
        ("caption", {"variant": "caption"}, {}, False),
        ("nlvr2", {"variant": "nlvr2"}, {}, False),
    ],
    "beit3": [
        ("vqa", {"final_norm": False}, VQA, False),
        ("nlvr2", {"pooling": "both"}, {}, False),
        ("retrieval", {"pooling": "both"}, {}, False),
        ("captioning", {"pooling": "both", "with_decoder": True}, {}, False),
        ("classification", {"pooling": "both", "final_norm": False, "num_classes": 1000}, {}, False),
    ],
}
"""In the order of the published counts: the task, the settings that differ from the defaults, the shapes of head
weights, and whether the count is of the student only.
"""


def counted(system: str, task: str, arguments: dict[str, Any], heads: Heads) -> tuple[int, int]:
    """Parameters of the whole step, and of the trained part."""
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in heads.items()}
        step = ADAPTERS[system].build(arguments, task, state)
    whole, student = (sum(p.numel() for p in module.parameters()) for module in (step, student_of(step)))
    return whole, student


@pytest.mark.slow
@pytest.mark.parametrize("system", JOBS)
def test_published_parameter_counts_are_those_of_the_built_models(system: str):
    figures = PUBLISHED[system].parameters
    assert len(figures) == len(JOBS[system])
    for (what, figure), (task, arguments, heads, without_teacher) in zip(figures.items(), JOBS[system], strict=True):
        whole, student = counted(system, task, arguments, heads)
        assert figure == (student if without_teacher else whole), what
        if whole != student:
            assert f"{whole if without_teacher else student:,}" in what or task in ("vqa", "nlvr2"), what
