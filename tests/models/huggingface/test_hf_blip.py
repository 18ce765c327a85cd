"""Hugging Face's BLIP computes the official outputs from an export, and its files can be imported again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.checkpoints.read import WeightsError, load_state_dict
from diptych.models.blip import checkpoint as blip
from diptych.models.blip.config import BLIPConfig
from diptych.models.blip.model import BLIP
from diptych.models.huggingface.blip import CLASSES
from diptych.models.huggingface.layouts import to_official_names
from diptych.models.importing import load_official
from tests.models.huggingface.common import equal, exported, golden, loaded, same
from tests.parity.compare import compare
from tests.parity.golden_case import Recomputed

SMALL: dict[str, Any] = dict(
    image_dim=32, image_depth=2, image_num_heads=4, image_mlp_dim=48, patch_size=8, grid=(2, 2),
    dim=32, depth=2, num_heads=4, mlp_dim=40, vocab_size=120, text_length=12,
    bos_token_id=118, enc_token_id=119, embed_dim=16,
)  # fmt: skip


@torch.no_grad()
@pytest.mark.slow
def test_hugging_face_s_blip_generates_the_official_captions(tmp_path: Path):
    case = golden("blip_caption")
    imported = case.imported
    exported("blip", "caption", imported.arguments, imported.build(), tmp_path)
    theirs = loaded("BlipForConditionalGeneration", tmp_path)
    ids, pixels = case.inputs["caption_ids"].clone(), case.inputs["image"]
    ids[:, 0] = imported.arguments["bos_token_id"]
    labels = ids.masked_fill(case.inputs["caption_mask"] == 0, -100)
    labels[:, : case.config["prompt_length"]] = -100
    out = theirs(pixel_values=pixels, input_ids=ids, attention_mask=case.inputs["caption_mask"], labels=labels)
    equal(case, {"image_embeds": out.image_embeds, "lm_logits": out.logits, "loss_lm": out.loss})
    prompt = case.inputs["prompt_ids"].expand(len(pixels), -1).clone()
    written = theirs.generate(pixel_values=pixels, input_ids=prompt, num_beams=3, max_length=14, min_length=7)
    equal(case, {"beam_ids": written})


@torch.no_grad()
def test_hugging_face_s_blip_gives_the_official_scores(tmp_path: Path):
    case = golden("blip_retrieval")
    imported = case.imported
    left = exported("blip", "retrieval", imported.arguments, imported.build(), tmp_path)
    assert "temp (the temperature: their class returns plain cosines)" in left
    theirs = loaded("BlipForImageTextRetrieval", tmp_path)
    ids, mask, pixels = case.inputs["text_ids"], case.inputs["text_mask"], case.inputs["image"]
    grounded = ids.clone()
    grounded[:, 0] = imported.arguments["enc_token_id"]
    out = theirs(input_ids=grounded, pixel_values=pixels, attention_mask=mask)
    equal(case, {"image_embeds": out.last_hidden_state, "fusion_embeds": out.question_embeds})
    assert compare("itm", "padded", case.expected["itm_logits"][: len(ids)], Recomputed(out.itm_score)).ok
    out = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask, use_itm_head=False)
    cosines = case.expected["image_feat"] @ case.expected["text_feat"].T
    equal(case, {"text_embeds": out.question_embeds})
    assert compare("cosines", "padded", cosines, Recomputed(out.itm_score)).ok


def test_a_vqa_model_with_unequal_widths_cannot_be_exported(tmp_path: Path):
    arguments: dict[str, Any] = SMALL | {"image_dim": 24, "variant": "vqa"}
    step = nn.ModuleDict({"model": BLIP(BLIPConfig(**arguments))})
    with pytest.raises(WeightsError, match="image_dim 24 and dim 32"):
        exported("blip", "vqa", arguments, step, tmp_path)


def random(task: str) -> tuple[dict[str, Any], Any]:
    """A training step of BLIP with random weights."""
    arguments = SMALL | {"variant": task}
    torch.manual_seed(0)
    step = blip.build(arguments, task, {"queue.image": torch.empty(6, 16)}).eval()
    for parameter in step.parameters():
        nn.init.normal_(parameter, std=0.2)
    return arguments, step


def text(first: int, n: int, second: int) -> Text:
    """Two texts of `n` and `second` tokens."""
    torch.manual_seed(1)
    real = torch.arange(n) < torch.tensor([[n], [second]])
    ids = torch.randint(1, 100, (2, n)) * real
    ids[:, 0] = first
    return Text(ids, real)


PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def equals_ours(theirs: Tensor, ours: Tensor) -> bool:
    return compare("x", "padded", ours, Recomputed(theirs)).ok


@torch.no_grad()
@pytest.mark.slow
def test_blip_s_answers_are_hugging_face_s(tmp_path: Path):
    """Questions have the same length, since their decoder attends to the padding of shorter ones."""
    arguments, step = random("vqa")
    assert exported("blip", "vqa", arguments, step, tmp_path) == []
    theirs = loaded("BlipForQuestionAnswering", tmp_path)
    question, answer = text(SMALL["enc_token_id"], 7, 7), text(SMALL["bos_token_id"], 5, 3)
    question_tokens = step.model.fuse(
        step.model.encode_text(question), step.model.encode_image(Image.from_full(PIXELS))
    ).text
    question_states = theirs.text_encoder(
        question.ids, question.mask.long(), encoder_hidden_states=theirs.vision_model(PIXELS).last_hidden_state
    ).last_hidden_state
    assert equals_ours(question_states[question.mask], question_tokens.to_padded()[question.mask])
    logits = theirs.text_decoder(
        answer.ids,
        answer.mask.long(),
        encoder_hidden_states=question_states,
        encoder_attention_mask=question.mask.long(),
    ).logits
    assert equals_ours(logits[answer.mask], step.model.next_token_logits(answer, question_tokens)[answer.mask])
    labels = answer.ids.masked_fill(~answer.mask, -100)
    loss = theirs(
        input_ids=question.ids, attention_mask=question.mask.long(), pixel_values=PIXELS, labels=labels,
        decoder_input_ids=answer.ids, decoder_attention_mask=answer.mask.long(),
    ).loss  # fmt: skip
    assert equals_ours(
        loss,
        step.answer_losses(step.model.next_token_logits(answer, question_tokens), answer).sum()
        / answer.mask[:, 1:].sum(),
    )


@pytest.mark.quick("vqa")
@torch.no_grad()
@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval"])
def test_blip_is_imported_from_hugging_face_bit_for_bit(task: str, tmp_path: Path):
    """From a file saved by their class, without tied weights; retrieval comes back as "matching"."""
    arguments, step = random(task)
    left = exported("blip", task, arguments, step, tmp_path)
    loaded(CLASSES[task], tmp_path).save_pretrained(tmp_path / "saved")
    assert (left == []) == (task != "retrieval")
    imported = load_official("blip", tmp_path / "saved" / "model.safetensors", num_heads=4)
    assert imported.task == ("matching" if task == "retrieval" else task)
    assert {name: imported.arguments.get(name, size) for name, size in SMALL.items()} == SMALL
    ours = step.student.state_dict() if task == "retrieval" else step.state_dict()
    ours = {name: tensor for name, tensor in ours.items() if "itc.scale" not in name}
    assert same(dict(imported.build().state_dict()), ours)
    again = exported("blip", imported.task, imported.arguments, imported.build(), tmp_path / "again")
    assert again == []
    files = (load_state_dict(folder / "hf" / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert same(*files)


@pytest.mark.parametrize(
    ("task", "message"), [("pretraining", "no class for BLIP's pretraining"), ("caption", "square")]
)
def test_unsupported_tasks_and_sizes_cannot_be_exported(task: str, message: str, tmp_path: Path):
    arguments = SMALL | {"variant": task, "grid": (2, 3)}
    step = blip.build(arguments, task, {"queue.image": torch.empty(6, 16)})
    with pytest.raises(WeightsError, match=message):
        exported("blip", task, arguments, step, tmp_path)


def test_unknown_weights_of_the_image_encoder_raise(tmp_path: Path):
    arguments, step = random("caption")
    exported("blip", "caption", arguments, step, tmp_path)
    state = load_state_dict(tmp_path / "hf" / "model.safetensors") | {"vision_model.pooler.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"unexpected weights: vision_model\.pooler\.weight"):
        to_official_names("blip", state)
