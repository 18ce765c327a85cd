from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.wordpiece import Tokenizer, Vocabulary, vocabulary

tokenizer = Tokenizer(max_length=12)


def test_the_vocabulary_is_berts():
    pieces = vocabulary()
    assert len(pieces) == Vocabulary.size
    special = (Vocabulary.pad, Vocabulary.unknown, Vocabulary.cls, Vocabulary.sep, Vocabulary.mask)
    assert [pieces[i] for i in special] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_ids_known_from_bert():
    text = tokenizer.encode(["Hello, World!", "a"])
    assert text.ids.tolist() == [[101, 7592, 1010, 2088, 999, 102], [101, 1037, 102, 0, 0, 0]]
    assert text.real.tolist() == [[True] * 6, [True] * 3 + [False] * 3]


def test_begins_marks_first_pieces_only():
    text = tokenizer.encode(["the fire-breathing snowboarders", "a"])
    pieces = [vocabulary()[i] for i in text.ids[0]]
    assert pieces == ["[CLS]", "the", "fire", "-", "breathing", "snow", "##board", "##ers", "[SEP]"]
    assert text.begins is not None
    assert text.begins[0].tolist() == [False, True, True, True, True, True, False, False, False]
    assert text.begins[1].tolist() == [False, True] + [False] * 7


def test_truncation_keeps_the_separator():
    text = tokenizer.encode(["word " * 100])
    assert text.ids.shape == (1, 12) and text.ids[0, -1] == Vocabulary.sep


def test_special_tokens_cannot_be_written_into_a_caption():
    ids = tokenizer.encode(["[MASK] [SEP] [PAD]"]).ids[0].tolist()
    assert Vocabulary.mask not in ids and ids.count(Vocabulary.sep) == 1 and Vocabulary.pad not in ids


def test_decode_undoes_encode():
    assert tokenizer.decode(tokenizer.encode(["two snowboarders, jumping"]).ids[0].tolist()) == (
        "two snowboarders, jumping"
    )


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_text_has_its_frame(texts):
    out = tokenizer.encode(texts)
    assert out.begins is not None and out.ids.shape[1] <= 12
    for ids, real, begins in zip(out.ids, out.real, out.begins, strict=True):
        n = int(real.sum())
        assert real[:n].all() and ids[0] == Vocabulary.cls and ids[n - 1] == Vocabulary.sep
        assert (ids[n:] == Vocabulary.pad).all() and not begins[[0, n - 1]].any() and not begins[n:].any()
        assert n == 2 or begins[1]


def test_agrees_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocabulary()), encoding="utf-8")
    reference = transformers.BertTokenizer(str(path))
    texts = ["A naïve café owner's über-dog", "北京 is far", "x" * 150, "it's 3.50€ — “quoted”…\t\x00 tab"]
    for text in texts:
        ids = reference(text, truncation=True, max_length=12)["input_ids"]
        assert tokenizer.encode([text]).ids[0].tolist() == ids


def test_survives_pickling():
    text = pickle.loads(pickle.dumps(tokenizer)).encode(["a snowboarder"])
    assert text.ids.tolist() == tokenizer.encode(["a snowboarder"]).ids.tolist()
