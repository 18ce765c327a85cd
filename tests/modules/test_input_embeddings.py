"""Input embeddings as arguments: every model with every choice of `--embedders.image` and `--embedders.text`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Image, Regions, Text
from diptych.config.data import Embedders, ImageSettings
from diptych.config.objectives import ITM, Objectives
from diptych.config.run import Pretrain
from diptych.config.training import Training
from diptych.encoders.efficientnet import FrozenCNN
from diptych.inference import embedders
from diptych.inference.embedders import input_embeddings
from diptych.models.configs import (
    ALBEFConfig,
    BLIPConfig,
    CrossViTConfig,
    ImageOnlyModel,
    Model,
    RegionModel,
    ViLBERTConfig,
    VLMoConfig,
)
from diptych.modules.embeddings import (
    MultiScalePatchEmbedding,
    PatchEmbedding,
    PatchEmbeddingWithoutPosition,
    TextEmbedding,
)
from diptych.modules.frozen_text import InputDropout
from diptych.modules.init import init_transformer, scale_init
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.protocols import FusionEncoder
from tests.models.test_first_step import FEATURE_DIM, VOCABULARY, B, toy

IMAGES, TEXTS = ("own", "grid", "regions/"), ("own", "minilm", "minilm_words", "minilm_causal")
PATCHES = PatchEmbedding | PatchEmbeddingWithoutPosition | MultiScalePatchEmbedding
OF_GRIDS = {(name, "regions/") for name in ("VisualTokenizer", "MAE", "CrossViT")}
"""Models that read nothing but images, whose patches they predict or divide in two sizes."""
DECODERS = ("decoder.", "answer_words.")
SMALL_CROSSVIT: dict[str, Any] = {
    "image_sizes": (32, 32),
    "patch_sizes": (16, 8),
    "dims": (16, 24),
    "num_heads": (2, 2),
    "mlp_dims": (32, 32),
    "stages": ((1, 1, 0),),
}
CONFIGS: dict[str, Callable[[], Model]] = {cls.__name__.removesuffix("Config"): cls for cls in get_args(Model)} | {
    "ALBEF with decoder": lambda: ALBEFConfig(decoder_depth=1),
    "VLMo with relative positions": lambda: VLMoConfig(relative_position=True),
    "VLMo with absolute positions": lambda: VLMoConfig(relative_position=False),
    "ViLBERT with task tokens": lambda: ViLBERTConfig(num_tasks=2),
    "BLIP retrieval": lambda: BLIPConfig(variant="retrieval"),
    "BLIP caption": lambda: BLIPConfig(variant="caption"),
    "BLIP vqa": lambda: BLIPConfig(variant="vqa"),
    "BLIP nlvr2": lambda: BLIPConfig(variant="nlvr2"),
}


def toy_run(name: str, image: str, text: str) -> Pretrain:
    """A run of the model at toy size on these embedders, with input dropout."""
    config = CrossViTConfig(**SMALL_CROSSVIT) if name == "CrossViT" else CONFIGS[name]()
    run = Pretrain(
        model=config, objectives=Objectives(itm=ITM()), images=ImageSettings(), training=Training(batch_size=B)
    )
    run = run if name == "CrossViT" else toy(run)
    return replace(run, embedders=Embedders(image, feature_dim=FEATURE_DIM, text=text, dropout=0.1))  # type: ignore[arg-type]


class Recorded:
    """The embeddings that factories built, with copies of their initial weights."""

    def __init__(self) -> None:
        self.parts: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def recording(self, factory: Callable[..., nn.Module] | None) -> Callable[..., nn.Module] | None:
        def build(*arguments: Any) -> nn.Module:
            assert factory is not None
            part = factory(*arguments)
            self.parts.append((part, {name: t.clone() for name, t in part.state_dict().items()}))
            return part

        return factory and build

    def of(self, embeddings: InputEmbeddings) -> InputEmbeddings:
        image, text, word = (
            self.recording(factory) for factory in (embeddings.image, embeddings.text, embeddings.word)
        )
        return replace(embeddings, image=image, text=text, word=word)


def own_parts(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the model's own patch embeddings, and of its own word embeddings outside decoders."""
    parts = {name: part for name, part in model.named_modules() if not name.startswith(DECODERS)}
    words = {name for name, part in parts.items() if isinstance(part, nn.Embedding) and name.split(".")[-1] == "word"}
    return {name for name, part in parts.items() if isinstance(part, PATCHES)}, words


def image_of(run: Pretrain) -> Image | Regions:
    draw = torch.Generator().manual_seed(0)
    if run.embedders.image == "grid" and not isinstance(run.model, RegionModel):
        return Image.from_full(torch.randn(B, FrozenCNN.width, 2, 2, generator=draw))
    if run.embedders.image == "own" and not isinstance(run.model, RegionModel):
        return Image.from_full(torch.randn(B, 3, 32, 32, generator=draw))
    features, boxes = torch.randn(B, 3, FEATURE_DIM, generator=draw), torch.rand(B, 3, 5, generator=draw)
    return Regions(features, boxes, torch.ones(B, 3, dtype=torch.bool)).with_whole_image()


def outputs(run: Pretrain, model: Any) -> list[Tensor]:
    """The model's outputs for a batch: each modality separately and, if it fuses them, the pooled pair."""
    ids = torch.randint(10, VOCABULARY, (B, 6), generator=torch.Generator().manual_seed(1))
    image, text = image_of(run), Text(ids, torch.ones_like(ids, dtype=torch.bool))
    if isinstance(run.model, CrossViTConfig):
        return [model.classify(image)]
    if isinstance(run.model, ImageOnlyModel):
        return [model.encode_image(image).to_padded()]
    if isinstance(run.model, BLIPConfig) and run.model.variant == "caption":
        return [model(image, text)]
    if isinstance(run.model, ViLBERTConfig) and run.model.num_tasks:
        text = replace(text, task=torch.arange(B) % 2)
    visual, textual = model.encode_image(image), model.encode_text(text)
    values = [visual.to_padded(), textual.to_padded()]
    if isinstance(run.model, BLIPConfig) and run.model.variant == "nlvr2":
        values.append(model((image, image), text).pooled)
    elif isinstance(model, FusionEncoder):
        values.append(model.fuse(textual, visual).pooled)
    return values


@pytest.fixture(autouse=True)
def _small_frozen_networks(monkeypatch: pytest.MonkeyPatch):
    """Frozen networks without weights; their outputs have the true widths."""

    def states(text: Text, uncached: bool = False) -> Tensor:
        return torch.sin(text.ids[:, :, None] * torch.arange(1.0, 385.0))

    monkeypatch.setattr(embedders, "cnn_maps", lambda pixels: pixels)
    monkeypatch.setattr(embedders, "TEXT_FEATURES", dict.fromkeys(TEXTS[1:], (states, 384)))


def choices() -> list[tuple[str, str, str]]:
    """Models with every image embedder and text embedder that they can read."""
    every = []
    for name in CONFIGS:
        config = toy_run(name, "own", "own").model
        images = ("regions/",) if isinstance(config, RegionModel) else IMAGES
        texts = ("own",) if isinstance(config, ImageOnlyModel) else TEXTS
        if name == "CLIPResNet":  # see the test below
            images, texts = ("own",), ("own",)
        every += [(name, image, text) for image in images for text in texts]
    return [choice for choice in every if choice[:2] not in OF_GRIDS]


@pytest.mark.parametrize(("name", "image", "text"), choices())
def test_a_model_is_built_with_its_input_embeddings_and_no_others(name: str, image: str, text: str):
    run, recorded = toy_run(name, image, text), Recorded()
    torch.manual_seed(0)
    model: Any = run.model.build(recorded.of(input_embeddings(run))).eval()
    heads = model.pretraining_heads() if hasattr(model, "pretraining_heads") else nn.ModuleDict()
    scale_init(nn.ModuleList([model, heads]), 3.0)

    own_patches, own_words = own_parts(model)
    patches, words = own_parts(toy_run(name, "own", "own").model.build())
    assert own_patches == (patches if image == "own" else set())
    assert own_words == (words if text == "own" else set())
    built = 0 if image == "own" else len(patches)
    assert len(recorded.parts) == built + (0 if text == "own" else len(words))
    parts = set(model.modules())
    for part, initial in recorded.parts:
        assert part in parts
        assert all(torch.equal(part.state_dict()[name], t) for name, t in initial.items()), "weights drawn again"
    of_regions = [x for x in parts if isinstance(x, InputDropout) and x.in_features == FEATURE_DIM and x.dropout == 0.1]
    assert len(of_regions) == (1 if isinstance(run.model, RegionModel) else built * (image == "regions/"))
    for output in outputs(run, model):
        assert output.isfinite().all() and output.std() > 0


@pytest.mark.parametrize(("image", "text"), [("grid", "own"), ("regions/", "own"), ("own", "minilm_words")])
def test_a_resnet_reads_pixels_and_words_only(image: str, text: str):
    run = toy_run("CLIPResNet", image, text)
    with pytest.raises(ValueError, match="CLIP's ResNet reads pixels and words itself: leave embedders at their defau"):
        run.model.build(input_embeddings(run))


@pytest.mark.parametrize("name", ["ALBEF", "VisualBERT", "ViLBERT", "BLIP"])
@pytest.mark.parametrize("text", TEXTS)
def test_an_output_layer_is_tied_to_word_embeddings_or_has_weights_of_its_own(name: str, text: str):
    run = toy_run(name, "regions/", text)
    torch.manual_seed(0)
    model: Any = run.model.build(input_embeddings(run))
    weight = (model.get_output_embeddings() if name == "BLIP" else model.pretraining_heads()["mlm"]).decoder.weight
    words = model.decoder.words if name == "BLIP" else model.words
    tied = isinstance(words, TextEmbedding) and isinstance(words.word, nn.Embedding)
    assert tied == (text == "own" or (name, text) == ("BLIP", "minilm"))
    assert not tied or weight is words.word.weight
    assert weight.shape[1] == model.dim and 0.018 < weight.std() < 0.022


def test_blips_decoder_shares_word_embeddings_but_no_bidirectional_features():
    for text in TEXTS:
        run = toy_run("BLIP", "own", text)
        model: Any = run.model.build(input_embeddings(run))
        assert (model.decoder.words is model.encoder.words) == (text != "minilm")


def test_pretrained_weights_of_an_embedding_are_not_initialised_again():
    pretrained = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    for parameter in pretrained.parameters():
        nn.init.constant_(parameter, 7.0)
    embedding = InputEmbeddings(word=lambda _: pretrained).build_word(3)
    model = nn.ModuleList([embedding, nn.Linear(3, 3)]).apply(init_transformer)
    scale_init(model, 2.0)
    assert all((parameter == 7).all() for parameter in embedding.parameters())
    assert not model[1].bias.any() and 0 < model[1].weight.abs().max() < 0.5  # type: ignore[union-attr]


def test_own_embeddings_are_built_by_the_model():
    assert [OWN.build_image(8, (2, 2)), OWN.build_text(8), OWN.build_word(8)] == [None] * 3
    assert {field.name for field in fields(OWN)} == {"image", "text", "word", "feature_dropout"}
