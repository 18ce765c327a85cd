"""Caption statistics, vocabularies that do not fit the captions, and a run with a momentum teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diptych.data.synthetic import Scenes
from diptych.data.tokenizers.tokenizer import SCENES, Tokenizer, bundled, vocabulary
from diptych.inference.folder import load_weights, read_weights
from diptych.inference.saved_model import RunError
from diptych.models.albef import recipes as albef
from diptych.models.vilt import recipes as vilt
from diptych.runs.build import build, init_from_run
from diptych.runs.pretrain import pretrain, statistics
from diptych.runs.run_folder import read_run
from diptych.utils.state_dict import named_weights

WORLD = Tokenizer(40, vocabulary(SCENES))


class Photographs(Scenes):
    """Captions with words that the vocabulary of the synthetic scenes lacks."""

    name = "photographs"

    def captions(self, index: int) -> tuple[str, ...]:
        return ("a snowboarder jumps over a fence",)


def test_entropy_of_two_equally_common_words_is_ln_2():
    class Two(Scenes):
        def captions(self, index: int) -> tuple[str, ...]:
            return ("red blue",)

    assert statistics(Two("val", 3), WORLD) == {"captions_counted": 3, "unigram_entropy": pytest.approx(math.log(2))}


def test_captions_with_too_many_unknown_tokens_raise():
    with pytest.raises(
        RunError,
        match=r"photographs: 67% of the caption tokens are unknown to the vocabulary scenes .*--model.vocab_size 30522",
    ):
        statistics(Photographs("val", 3), WORLD)
    assert statistics(Photographs("val", 3), Tokenizer(40))["unigram_entropy"] > 0


def test_the_bundled_vocabulary_is_chosen_by_size():
    assert bundled(vilt.tiny().model.vocab_size) == vocabulary(SCENES)  # type: ignore[union-attr]
    assert bundled(vilt.small().model.vocab_size) == vocabulary()  # type: ignore[union-attr]
    assert bundled(99) is None


@pytest.mark.slow
def test_a_run_with_a_teacher_saves_its_student_and_initialises_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    published = albef.pretrain_4m()
    image: Any = dict(image_dim=16, image_depth=1, image_num_heads=2, image_mlp_dim=32, grid=(5, 5))
    text: Any = dict(dim=16, text_depth=1, fusion_depth=1, num_heads=2, mlp_dim=32, vocab_size=114, text_length=40)
    model = replace(published.model, **image, **text, embed_dim=8)
    training = replace(published.training, steps=2, batch_size=8, workers=0, device="cpu", precision="fp32")
    images, teacher = replace(published.images, shorter_side=80), replace(published.teacher, queue_size=16)
    run = replace(published, model=model, training=training, data="scenes:20", images=images, teacher=teacher)
    pretrain(run, tmp_path / "first")
    recorded, facts = read_run(tmp_path / "first")
    assert recorded == run and facts["candidates"] == 8 + 16
    assert {name.split(".")[0] for name in read_weights(tmp_path / "first")} == {"model", "heads"}
    queued = load_file(tmp_path / "first" / "checkpoint.safetensors")["weight/queue.identity"]
    assert (queued >= 0).all(), "two batches of eight fill the queue, and every entry has an image identity"
    before = load_weights(build(run, facts), tmp_path / "first")

    after = build(replace(run, training=replace(training, seed=1)), facts)
    init_from_run(after, replace(run, init_from=str(tmp_path / "first")))
    assert all(torch.equal(t, named_weights(before)[name]) for name, t in named_weights(after).items())
    pretrain(replace(run, init_from=str(tmp_path / "first")), tmp_path / "second")
    assert f"2 steps from {tmp_path / 'first'} (albef.pretrain_4m)" in capsys.readouterr().out
