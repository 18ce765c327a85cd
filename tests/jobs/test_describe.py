"""What is told of every system: the parts add up, and each verb costs something."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diptych.jobs.describe import describe
from diptych.recipes import vilt
from diptych.recipes.published import PUBLISHED


@pytest.mark.parametrize("name", ["vit", "vilt", "crossvit", "vilbert"])
def test_published_models_are_described(name: str):
    found = describe(PUBLISHED[name])
    assert found.parameters and found.verbs
    assert sum(verb.flops for verb in found.verbs) > 1e9
    for job, count in PUBLISHED[name].parameters.items():
        if name == "vit":
            assert sum(found.parameters.values()) == count, job


def test_flops_are_those_of_the_formula():
    """A ViLT of one block: patches, qkv, scores, context, out, feed-forward, pooler."""
    run = vilt.tiny()
    run = replace(run, model=replace(run.model, depth=1))
    found = {verb.name: verb for verb in describe(run).verbs}
    d, n, patch, hidden = run.model.width, 36 + 15, run.model.patch, run.model.hidden
    assert found["encode_image"].flops == 2 * 35 * 3 * patch * patch * d
    assert (found["encode_image"].tokens, found["encode_text"].tokens, found["fuse"].tokens) == (36, 15, n)
    block = 2 * n * d * 3 * d + 2 * 2 * n * n * d + 2 * n * d * d + 2 * 2 * n * d * hidden
    assert found["fuse"].flops == block + 2 * d * d
