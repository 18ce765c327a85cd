"""ViLT-B/32: a pre-training step and question answering, beside Hugging Face.

Both have the same weights (theirs), the same heads, the same ragged photographs and captions. The step has three losses:
matching and word-patch alignment on one pass, masked words on another. Theirs runs in its default form: padded, and
with logits at every word, as in its ViltForMaskedLM. Alignment is solved by our `optimal_transport` on both sides, and
the masks are drawn outside their step, so that the figures are about the model.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.speed import peers
from bench.speed.harness import (
    Work,
    autocast,
    compare_steps,
    compare_tensors,
    inference,
    training_step,
    with_bf16_weights,
)
from bench.speed.inputs import PATCH, pixel_mask, ragged_batch
from diptych.batch import Batch, Image, Text
from diptych.models.huggingface.layouts import to_official_names
from diptych.models.importing import map_official
from diptych.models.vilt.model import ViLT
from diptych.objectives.itm import ITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import KeyedChoices, MaskedText, WordMasking
from diptych.objectives.wpa import WPALoss, optimal_transport
from diptych.tasks.vqa import ClosedVQA

SIZE, ANSWERS = 8, 3129  # samples of a step and questions; answers of VQA v2
FRESH = 6  # batches of different shapes that the rounds of `fresh_steps` go through
WEIGHTS = {"itm": 1.0, "mlm": 1.0, "wpa": 0.1}


class Peer(nn.Module):
    """The three losses on the outputs of Hugging Face's ViltModel."""

    def __init__(self, vilt: nn.Module, heads: nn.ModuleDict):
        super().__init__()
        self.vilt, self.heads = vilt, heads

    def forward(self, batch: Batch, masked: MaskedText) -> dict[str, Tensor]:
        text, image, matching = batch.text, batch.image, batch.matching
        assert text is not None and image is not None and matching is not None
        n = text.ids.shape[1]
        hidden = self.vilt(**inputs(masked.text, image)).last_hidden_state[:, :n]
        labels = masked.original.masked_fill(~masked.masked, -100)
        pair = self.vilt(**inputs(text, matching.image))
        words, patches = pair.last_hidden_state[:, 1:n], pair.last_hidden_state[:, n + 1 :]
        inner = text.mask[:, 1:].clone()
        inner[torch.arange(len(text)), text.mask.sum(1) - 2] = False  # [SEP]
        count = (matching.image.sizes // PATCH).prod(1, keepdim=True)
        distance = optimal_transport(words, patches, inner, torch.arange(patches.shape[1]) < count).distance
        sign = torch.where(matching.matched, 1.0, -1.0)
        return {
            "itm": F.cross_entropy(self.heads["itm"](pair.pooler_output).float(), matching.matched.long()),
            "mlm": F.cross_entropy(self.heads["mlm"](hidden).float().flatten(0, 1), labels.flatten()),
            "wpa": (sign * distance).mean(),
        }


def inputs(text: Text, image: Image) -> dict[str, Tensor]:
    """The arguments of Hugging Face's models."""
    return {
        "input_ids": text.ids,
        "attention_mask": text.mask.long(),
        "pixel_values": image.pixels,
        "pixel_mask": pixel_mask(image),
    }


def both(kind: str, **settings: Any) -> tuple[Any, nn.Module]:
    """Hugging Face's model of this class, and what its weights import as; no dropout. Raises ImportError.

    Their norms get the official eps.
    """
    torch.manual_seed(0)
    transformers = peers.transformers()
    theirs = getattr(transformers, kind)(transformers.ViltConfig(**settings))
    for name, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm) and "classifier" not in name:
            module.eps = 1e-12 if "text_embeddings" in name else 1e-6
    official, _ = to_official_names("vilt", theirs.state_dict())
    imported = map_official("vilt", official, {})
    imported = replace(imported, arguments=imported.arguments | {"dropout": 0.0})  # as their default
    return theirs, imported.build()


def step(precision: str) -> Work:
    """Every round has the same batch."""
    return _steps(precision, 1)


def fresh_steps(precision: str) -> Work:
    """Every round has a batch of other shapes, as in training, for which bf16 kernels are compiled anew."""
    return _steps(precision, FRESH)


def _steps(precision: str, num_batches: int) -> Work:
    masking = WordMasking(whole_words=False)
    batches = [ragged_batch(SIZE, number) for number in range(num_batches)]
    masked = [KeyedChoices(batch).mask_text(cast(Text, batch.text), masking) for batch in batches]
    theirs, imported = both("ViltModel")
    model = cast(ViLT, imported.get_submodule("model"))
    heads = model.pretraining_heads()
    peer = Peer(theirs, heads).train()
    ours = Pretraining(model, heads, [ITMLoss(), MLMLoss(masking), WPALoss()]).train()

    def of_round(number: int) -> int:
        return number % num_batches

    run = training_step(ours, lambda number: ours(batches[of_round(number)]), WEIGHTS, precision)
    run_theirs = training_step(
        peer, lambda number: peer(batches[of_round(number)], masked[of_round(number)]), WEIGHTS, precision
    )
    return Work(run, {peers.HF: run_theirs}, compare_steps(precision, 1e-6))


def vqa(precision: str) -> Work:
    """Logits of all answers, images and questions encoded."""
    theirs, imported = both("ViltForQuestionAnswering", num_labels=ANSWERS)
    theirs.eval()
    ours = cast(ClosedVQA, imported.eval())
    batch = ragged_batch(SIZE)
    assert batch.text is not None and batch.image is not None
    arguments = inputs(batch.text, batch.image)

    computing = inference(ours, precision)

    def answer(_: int) -> Tensor:
        with computing():
            return ours.logits(batch)

    @torch.no_grad()
    def answer_theirs(_: int) -> Tensor:
        with autocast(precision):
            return theirs(**arguments).logits

    def converted() -> peers.Candidate:
        model, pixels = copy.deepcopy(theirs).bfloat16(), batch.image.pixels.bfloat16()  # type: ignore[union-attr]
        return torch.no_grad()(lambda _: model(**arguments | {"pixel_values": pixels}).logits)

    others = {peers.HF: answer_theirs, **with_bf16_weights(precision, peers.HF, converted)}
    return Work(answer, others, compare_tensors(precision, "logits", 1e-5, 5e-2))
