"""Work that objectives share in a training step: computed once, with the losses and gradients of computing it anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.modules.attention import CrossAttention, SharedContext
from diptych.modules.tokens import packing
from diptych.objectives.lm import LMLoss
from diptych.objectives.masked_views import masked_pair
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.tasks.retrieval_training import Retrieval
from diptych.training.distributed import checkpoint_activations
from tests.generation.counting import flops, rows_computed
from tests.models.systems.common import FALSE, batch_of
from tests.models.test_battery import amplified, gradients, losses_of, step_of, total_of

B = 6


@dataclass(frozen=True)
class Shifted(KeyedChoices):
    """Each sample's negatives are the samples after it, so that every image has as many texts."""

    def sample_negatives(self, side: str, log_weights: Tensor) -> Tensor:
        return torch.arange(len(log_weights)).roll(1 if side == "image" else 2)


@dataclass(frozen=True)
class Repeated(KeyedChoices):
    """The first sample is the negative of all others, and the second that of the first."""

    def sample_negatives(self, side: str, log_weights: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(0), len(log_weights))


def distilled(name: str, job: str, seed: int = 0) -> MomentumDistillation:
    student, _ = step_of(name, job, seed)
    assert isinstance(student, Pretraining)
    return MomentumDistillation(student, Queue(16, student.model.embed_dim))  # type: ignore[arg-type, union-attr]


STEPS: dict[str, Callable[[int], nn.Module]] = {
    "albef": lambda seed: step_of("albef", "pretraining", seed)[0],
    "albef with a teacher": lambda seed: distilled("albef", "pretraining", seed),
    "albef answers": lambda seed: step_of("albef for vqa", "vqa", seed)[0],
    "albef retrieval": lambda seed: Retrieval(step_of("albef", "pretraining", seed)[0].model, 32, FALSE),  # type: ignore
    "blip": lambda seed: step_of("blip", "pretraining", seed)[0],
    "coca": lambda seed: step_of("coca", "pretraining", seed)[0],
}


def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every use of an image, a question or a text compute its own."""
    monkeypatch.setattr(Views, "image_context", property(lambda views: views.image))
    monkeypatch.setattr(
        LMLoss, "hidden_states", lambda _, views, model: model.decode_hidden_states(views.text_input, views.image)
    )
    monkeypatch.setattr(SharedContext, "of", lambda tokens: tokens)


def results(step: nn.Module, packed: bool, choices: type[KeyedChoices], seed: int) -> tuple[dict, dict]:
    """Losses and gradients of a step."""
    amplified(step).eval()
    batch = batch_of(B, seed)
    student: Any = step.student if isinstance(step, MomentumDistillation) else step
    student.pack = packed
    draws = {"draws": choices(batch)} if isinstance(student, Pretraining) else {}
    with packing(packed):
        losses = step(batch, student.num_terms(batch), **draws)
    return losses, gradients(student, total_of(step, losses))


@pytest.fixture
def doubles() -> Iterator[None]:
    """Float64 throughout but for the losses, so that rounding does not hide a difference."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("choices", [KeyedChoices, Shifted, Repeated])
@pytest.mark.parametrize("name", STEPS)
def test_losses_and_gradients_are_those_of_computing_everything_anew(
    name: str, choices: type[KeyedChoices], packed: bool, monkeypatch: pytest.MonkeyPatch
):
    """Over images and texts of different sizes; with activation checkpointing too."""
    for seed in range(2):
        step = STEPS[name](seed)
        shared = results(step, packed, choices, seed)
        checkpointed = STEPS[name](seed)
        checkpoint_activations(checkpointed)
        recomputed = results(checkpointed, packed, choices, seed)
        with monkeypatch.context() as patch:
            unshared(patch)
            expected = results(STEPS[name](seed), packed, choices, seed)
        for got in (shared, recomputed):
            for values, wanted in zip(got, expected, strict=True):
                assert values.keys() == wanted.keys()
                largest = max(x.abs().max().item() for x in wanted.values())
                for key in wanted:
                    torch.testing.assert_close(values[key], wanted[key], rtol=1e-6, atol=1e-7 * largest)


def padded(step: nn.Module) -> Any:
    """The step, which computes padding too, so that its FLOPs follow from shapes."""
    step.pack = False  # type: ignore[assignment]
    return step.eval()


def cross_attentions(module: nn.Module) -> list[CrossAttention]:
    return [part for part in module.modules() if isinstance(part, CrossAttention)]


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("choices", [Shifted, Repeated])
@pytest.mark.parametrize("name", ["albef", "albef with a teacher", "albef retrieval", "blip", "albef answers"])
def test_each_layer_projects_an_image_once_in_a_step(name: str, choices: type[KeyedChoices], packed: bool):
    """For the positive pair, both negatives, masked words and the decoder together."""
    step = STEPS[name](0)
    batch = batch_of(B)
    assert batch.image is not None and batch.text is not None
    image = 1 + batch.image.extents(8).prod(1)  # tokens of each image
    columns = int(image.sum()) if packed else B * (1 + 3 * 4)
    text = int(batch.text.mask.sum()) if packed else batch.text.mask.numel()
    layers = {
        projection: text if ".decoder." in f".{path}" and name == "albef answers" else columns
        for path, part in step.named_modules()
        if isinstance(part, CrossAttention)
        for projection in (part.key, part.value)
    }
    assert layers
    with rows_computed(*layers) as rows:
        results(step, packed, choices, 0)
    assert rows == list(layers.values())


@pytest.mark.parametrize(
    ("system", "job", "blocks"),
    [("coca", "pretraining", "text.blocks"), ("vilbert", "pretraining", "streams.text")],
)
def test_text_blocks_compute_a_text_once_in_a_step(system: str, job: str, blocks: str):
    """CoCa's captioning continues from the text of the contrastive loss; ViLBERT's three losses share one pass."""
    step: Any = padded(step_of(system, job)[0])
    queries = [block.attention.qkv for block in step.model.get_submodule(blocks)]
    batch = batch_of(B)
    assert batch.text is not None
    with rows_computed(*queries) as rows:
        losses_of(step, batch)
    added = 2 if system == "coca" else 0  # a pad and the [CLS]
    assert rows == [B * (batch.text.mask.shape[1] + added)] * len(queries)


def flops_of_heads(step: Pretraining, batch: Batch, predicted: int) -> int:
    """Of the heads of ITC, ITM (three pairs a sample) and `predicted` words."""
    heads: Any = step.heads
    itc, weight = heads["itc"], next(iter(heads["itc"].parameters()))
    image, text = weight.new_zeros(B, step.model.image_dim), weight.new_zeros(B, step.model.dim)  # type: ignore[union-attr]
    words = heads["mlm"] if "mlm" in heads else step.model.get_output_embeddings()  # type: ignore[operator, union-attr]
    calls: list[Callable[[], object]] = [
        lambda: itc.project_image(image) @ itc.project_text(text).T,
        lambda: itc.project_text(text) @ itc.project_image(image).T,
        lambda: heads["itm"](text.repeat(3, 1)),
        lambda: words(text[:1].expand(predicted, -1)),
    ]
    projected_again = flops(lambda: (itc.project_image(image), itc.project_text(text)))
    return sum(flops(call) for call in calls) - projected_again


@torch.no_grad()
@pytest.mark.parametrize("name", ["albef", "blip"])
def test_a_step_computes_no_more_than_its_formula(name: str):
    """Each image and text encoded once; four texts an image, whose keys and values are projected once."""
    step: Any = padded(STEPS[name](0))
    batch, model = batch_of(B), step.model
    assert batch.image is not None and batch.text is not None
    text, image = model.encode_text(batch.text), model.encode_image(batch.image)
    fused = flops(lambda: model.fuse(text, image))
    layers = cross_attentions(model.fusion if name == "albef" else model.encoder)
    projections = sum(2 * image.mask.numel() * x.weight.numel() for layer in layers for x in (layer.key, layer.value))
    encoded = flops(lambda: model.encode_image(batch.image)) + flops(lambda: model.encode_text(batch.text))
    if name == "albef":
        masked = int(next(o for o in step.objectives if o.name == "mlm").num_terms(step.views(batch))["mlm"])
        expected = encoded + flops(lambda: model.encode_text(batch.text)) + 4 * fused - 3 * projections
        heads = flops_of_heads(step, batch, masked)
    else:
        decoded = flops(lambda: model.decode_hidden_states(batch.text, image))
        unimodal = flops(lambda: model.encode_unimodal(text))
        expected = encoded + unimodal + 3 * fused + decoded - 3 * projections
        heads = flops_of_heads(step, batch, int(batch.text.mask[:, 1:].sum()))
    assert flops(lambda: step(batch, step.num_terms(batch), Shifted(batch))) == expected + heads


@torch.no_grad()
def test_a_step_of_vilbert_fuses_each_pair_once():
    """Its three losses read one pass of the two streams; besides, only heads compute."""
    step: Any = padded(step_of("vilbert", "pretraining")[0])
    batch = batch_of(B)
    calls: list[int] = []
    step.model.streams.register_forward_hook(lambda *_: calls.append(1))
    views = step.views(batch)
    pair = flops(lambda: masked_pair(views, step.objectives[2].masking))
    heads = flops(lambda: [objective.loss_sums(views) for objective in step.objectives])
    assert calls == [1]
    assert flops(lambda: losses_of(step, batch)) == pair + heads
    assert calls == [1, 1]


@torch.no_grad()
def test_a_step_of_coca_decodes_each_text_once():
    step: Any = padded(STEPS["coca"](0))
    batch, model = batch_of(B), step.model
    assert batch.image is not None and batch.text is not None
    image, text = model.encode_image(batch.image), model.encode_text(batch.text)
    encoded = flops(lambda: model.encode_image(batch.image)) + flops(lambda: model.encode_text(batch.text))
    words = int(batch.text.mask[:, 1:].sum())
    heads = flops(lambda: model.lm_head(text.values.new_zeros(words, model.text_dim)))
    itc = step.heads["itc"]
    heads += flops(lambda: itc.project_image(image.first()) @ itc.project_text(image.first()).T)
    heads += 2 * B * B * model.embed_dim
    assert flops(lambda: losses_of(step, batch)) == encoded + flops(lambda: model.fuse(text, image)) + heads
