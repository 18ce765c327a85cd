"""VisualBERT equals transformers' VisualBertModel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.batch import Regions, Text
from diptych.models.visualbert.config import VisualBERTConfig
from diptych.models.visualbert.model import VisualBERT
from diptych.modules.embeddings import RegionEmbedding
from diptych.modules.input_embeddings import InputEmbeddings
from diptych.modules.tokens import FusedTokens, packing

OUTSIDE = {
    "words.word": "embeddings.word_embeddings", "words.position": "embeddings.position_embeddings",
    "words.segment": "embeddings.token_type_embeddings", "words.norm": "embeddings.LayerNorm",
    "regions.feature": "embeddings.visual_projection", "transformer.pooler.dense": "pooler.dense",
}  # fmt: skip
LAYER = {
    "attention.out": "attention.output.dense", "norm1": "attention.output.LayerNorm",
    "feedforward.fc1": "intermediate.dense", "feedforward.fc2": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip


def ours_of(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    named = OUTSIDE | {"regions.norm": "embeddings.LayerNorm"}
    for i in range(depth):
        named |= {f"transformer.blocks.{i}.{ours}": f"encoder.layer.{i}.{hf}" for ours, hf in LAYER.items()}
    state = {
        f"{ours}.{kind}": theirs[f"{hf}.{kind}"]
        for ours, hf in named.items()
        for kind in ("weight", "bias")
        if f"{hf}.{kind}" in theirs
    }
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [theirs[f"encoder.layer.{i}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"transformer.blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
    kind, position = "embeddings.visual_token_type_embeddings.weight", "embeddings.visual_position_embeddings.weight"
    state["regions.kind.weight"] = theirs[kind][1:2] + theirs[position][:1]
    return state


def inputs() -> tuple[Text, Regions]:
    generator = torch.Generator().manual_seed(0)
    lengths, counts = torch.tensor([7, 4, 6]), torch.tensor([3, 5, 1])
    real, detected = torch.arange(7) < lengths[:, None], torch.arange(5) < counts[:, None]
    ids = torch.randint(3, 50, (3, 7), generator=generator) * real
    features = torch.randn(3, 5, 20, generator=generator)
    return Text(ids, real), Regions(features, torch.rand(3, 5, 5, generator=generator), detected)


def pair_of(model: VisualBERT, packed: bool) -> FusedTokens:
    text, regions = inputs()
    with packing(packed), torch.no_grad():
        return model.fuse(model.encode_text(text), model.encode_image(regions))


@pytest.mark.parametrize("packed", [False, True])
def test_outputs_equal_transformers_visualbert(packed: bool):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VisualBertConfig(
        vocab_size=50, hidden_size=32, visual_embedding_dim=20, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=9, special_visual_initialize=False,
    )  # fmt: skip
    theirs = transformers.VisualBertModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = VisualBERT(VisualBERTConfig(32, 3, 4, 48, feature_dim=20, vocab_size=50, text_length=9)).eval()
    model.load_state_dict(ours_of(theirs.state_dict(), 3))
    text, regions = inputs()
    with torch.no_grad():
        output = theirs(
            text.ids, attention_mask=text.mask.float(), visual_embeds=regions.features,
            visual_attention_mask=regions.mask.float(),
        )  # fmt: skip
    pair = pair_of(model, packed)
    expected = output.last_hidden_state
    torch.testing.assert_close(pair.text.gather(text.mask), expected[:, :7][text.mask], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(pair.image.gather(regions.mask), expected[:, 7:][regions.mask], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(pair.pooled, output.pooler_output, rtol=1e-5, atol=2e-6)


def test_boxes_matter_with_uniter_s_region_embedding():
    config = VisualBERTConfig(32, 2, 4, 48, feature_dim=20, vocab_size=50, text_length=9)
    text, regions = inputs()
    moved = Regions(regions.features, regions.boxes.flip(1), regions.mask)

    def pooled(model: VisualBERT, regions: Regions) -> Tensor:
        return model.fuse(model.encode_text(text), model.encode_image(regions)).pooled

    torch.manual_seed(0)
    own = VisualBERT(config).eval()
    assert torch.equal(pooled(own, regions), pooled(own, moved)), "VisualBERT does not embed boxes"
    uniter = VisualBERT(config, InputEmbeddings(image=lambda dim, _: RegionEmbedding(20, dim))).eval()
    assert not torch.allclose(pooled(uniter, regions), pooled(uniter, moved))
