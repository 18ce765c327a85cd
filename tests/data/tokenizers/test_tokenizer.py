from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.synthetic import SceneQuestions, Scenes
from diptych.data.tokenizers.tokenizer import BERT, SCENES, Tokenizer, vocabulary

BUNDLED = vocabulary(BERT)
WORLD = vocabulary(SCENES)
tokenizer = Tokenizer(max_length=12)


def test_the_vocabulary_is_berts():
    assert BUNDLED.size == 30522
    assert (BUNDLED.pad, BUNDLED.unknown, BUNDLED.cls, BUNDLED.sep, BUNDLED.mask) == (0, 100, 101, 102, 103)


def test_ids_known_from_bert():
    text = tokenizer.encode(["Hello, World!", "a"])
    assert text.ids.tolist() == [[101, 7592, 1010, 2088, 999, 102], [101, 1037, 102, 0, 0, 0]]
    assert text.mask.tolist() == [[True] * 6, [True] * 3 + [False] * 3]


def test_the_scenes_vocabulary_is_a_subset_of_berts_in_its_order():
    assert WORLD.size < BUNDLED.size, "models choose their tokenizer by the size of its vocabulary"
    assert [p for p in BUNDLED.tokens if p in set(WORLD.tokens)] == list(WORLD.tokens)


@pytest.mark.slow
def test_scene_texts_have_the_same_tokens_in_both_vocabularies():
    scenes, small, large = Scenes("novel", 60), Tokenizer(40, WORLD), Tokenizer(40)
    questions = SceneQuestions(scenes)
    texts = [text for i in range(len(scenes)) for text in scenes.captions(i)]
    texts += [questions.question(i).text for i in range(len(questions))]
    a, b = small.encode(texts), large.encode(texts)
    assert [WORLD.tokens[i] for i in a.ids.flatten()] == [BUNDLED.tokens[i] for i in b.ids.flatten()]
    assert not (a.ids == WORLD.unknown).any() and a.word_start is not None and b.word_start is not None
    assert (a.word_start == b.word_start).all() and small.decode(a.ids[0].tolist()) == large.decode(b.ids[0].tolist())


def test_a_word_outside_the_scenes_vocabulary_is_unknown():
    ids = Tokenizer(12, WORLD).encode(["a red snowboarder"]).ids[0].tolist()
    assert [WORLD.tokens[i] for i in ids] == ["[CLS]", "a", "red", "[UNK]", "[SEP]"]


def test_word_start_marks_first_tokens_only():
    text = tokenizer.encode(["the fire-breathing snowboarders", "a"])
    pieces = [BUNDLED.tokens[i] for i in text.ids[0]]
    assert pieces == ["[CLS]", "the", "fire", "-", "breathing", "snow", "##board", "##ers", "[SEP]"]
    assert text.word_start is not None
    assert text.word_start[0].tolist() == [False, True, True, True, True, True, False, False, False]
    assert text.word_start[1].tolist() == [False, True] + [False] * 7


def test_truncation_keeps_the_separator():
    text = tokenizer.encode(["word " * 100])
    assert text.ids.shape == (1, 12) and text.ids[0, -1] == BUNDLED.sep


def test_special_tokens_in_a_caption_are_plain_text():
    ids = tokenizer.encode(["[MASK] [SEP] [PAD]"]).ids[0].tolist()
    assert BUNDLED.mask not in ids and ids.count(BUNDLED.sep) == 1 and BUNDLED.pad not in ids


def test_decode_inverts_encode():
    assert tokenizer.decode(tokenizer.encode(["two snowboarders, jumping"]).ids[0].tolist()) == (
        "two snowboarders, jumping"
    )


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_text_has_its_special_tokens(texts):
    out = tokenizer.encode(texts)
    assert out.word_start is not None and out.ids.shape[1] <= 12
    for ids, real, begins in zip(out.ids, out.mask, out.word_start, strict=True):
        n = int(real.sum())
        assert real[:n].all() and ids[0] == BUNDLED.cls and ids[n - 1] == BUNDLED.sep
        assert (ids[n:] == BUNDLED.pad).all() and not begins[[0, n - 1]].any() and not begins[n:].any()
        assert n == 2 or begins[1]


@pytest.mark.slow
def test_agrees_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(BUNDLED.tokens), encoding="utf-8")
    reference = transformers.BertTokenizer(str(path))
    texts = ["A naïve café owner's über-dog", "北京 is far", "x" * 150, "it's 3.50€ — “quoted”…\t\x00 tab"]
    for text in texts:
        ids = reference(text, truncation=True, max_length=12)["input_ids"]
        assert tokenizer.encode([text]).ids[0].tolist() == ids


def test_a_tokenizer_can_be_pickled():
    text = pickle.loads(pickle.dumps(tokenizer)).encode(["a snowboarder"])
    assert text.ids.tolist() == tokenizer.encode(["a snowboarder"]).ids.tolist()
