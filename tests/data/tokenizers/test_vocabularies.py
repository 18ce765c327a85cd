"""Vocabularies from files: SentencePiece models with XLM-R's ids, lists of tokens, trained ones; and their errors."""

from __future__ import annotations

import io
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from diptych.data.sources.base import DataError
from diptych.data.synthetic import Scenes
from diptych.data.tokenizers import tokenizer as vocabularies
from diptych.data.tokenizers.tokenizer import (
    BERT,
    CLIP,
    Tokenizer,
    read_vocabulary,
    vocabulary,
    vocabulary_file_name,
    vocabulary_in,
)
from diptych.data.tokenizers.wordpiece import SPECIAL, train_wordpiece, wordpiece

SCENES = Scenes("train", 60)
TEXTS = [text for i in range(60) for text in SCENES.captions(i)]
SIZE = 90


def trained(**changes: Any) -> bytes:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        sentence_iterator=iter(TEXTS), model_writer=made, vocab_size=SIZE, minloglevel=2, **changes
    )
    return made.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return trained()


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def test_a_sentencepiece_model_has_the_ids_of_xlm_r(model: bytes, tmp_path: Path):
    vocab = read_vocabulary(written(tmp_path / "beit3.spm", model))
    own = sentencepiece.SentencePieceProcessor(model_proto=model)  # type: ignore[call-arg]
    assert vocab.tokens[:4] == ("<s>", "<pad>", "</s>", "<unk>") and (vocab.cls, vocab.pad, vocab.sep) == (0, 1, 2)
    assert vocab.size == len(own) + 2 and vocab.mask == len(own) + 1
    for text in [*TEXTS[:20], "", "  spaces   between  ", "Ünknown 北京 letters"]:
        ids = [i + 1 if i > 2 else 3 for i in own.encode(text)]
        assert Tokenizer(200, vocab).encode([text]).ids.tolist() == [[0, *ids, 2]]


@pytest.mark.slow
def test_ids_of_a_sentencepiece_model_are_those_of_transformers(model: bytes, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    vocab = read_vocabulary(written(tmp_path / "sentencepiece.bpe.model", model))
    own = sentencepiece.SentencePieceProcessor(model_proto=model)  # type: ignore[call-arg]
    scored = [(p, 0.0) for p in vocab.tokens[:4]]
    scored += [(own.id_to_piece(i), own.get_score(i)) for i in range(3, len(own))] + [("<mask>", 0.0)]
    reference = transformers.XLMRobertaTokenizer(vocab=scored)
    assert reference.mask_token_id == vocab.mask
    for text in [*TEXTS[:20], "a red star"]:
        ids = reference(text, truncation=True, max_length=12)["input_ids"]
        assert Tokenizer(12, vocab).encode([text]).ids[0].tolist() == ids


def test_words_of_a_sentencepiece_model_start_at_spaces_and_are_decoded(model: bytes, tmp_path: Path):
    vocab = read_vocabulary(written(tmp_path / "words.model", model))
    tokenizer = Tokenizer(200, vocab)
    text = tokenizer.encode([TEXTS[0]])
    assert text.word_start is not None and int(text.word_start.sum()) == len(TEXTS[0].split()) < text.ids.shape[1] - 2
    assert tokenizer.decode([*text.ids[0].tolist(), vocab.pad, 7]) == TEXTS[0]
    assert "<mask>" in tokenizer.decode([0, 7, vocab.mask, 2])
    again = pickle.loads(pickle.dumps(tokenizer)).encode([TEXTS[0]])
    assert again.ids.tolist() == text.ids.tolist()


def test_training_wordpiece_is_deterministic_and_covers_its_texts(tmp_path: Path):
    pieces = train_wordpiece(TEXTS, SIZE)
    assert pieces == train_wordpiece(TEXTS, SIZE) and pieces[:5] == SPECIAL and len(pieces) <= SIZE
    vocab = read_vocabulary(written(tmp_path / "learned.txt", "\n".join(pieces).encode()))
    text = Tokenizer(200, vocab).encode(TEXTS)
    assert vocab.tokens == pieces and not (text.ids == vocab.unknown).any() and text.word_start is not None
    with pytest.raises(ValueError, match="raise --size above it"):
        train_wordpiece(TEXTS, 30)
    assert [Tokenizer(200, vocab).decode(row) for row in text.ids.tolist()] == TEXTS
    assert text.word_start.sum(1).tolist() == [len(t.replace(",", " , ").split()) for t in TEXTS]


def test_berts_vocabulary_is_read_from_a_file(tmp_path: Path):
    vocab = read_vocabulary(written(tmp_path / "vocab.txt", "\r\n".join(vocabulary(BERT).tokens).encode()))
    assert vocab.tokens == vocabulary(BERT).tokens and vocab.special == vocabulary(BERT).special


def test_a_vocabulary_file_is_named_by_its_content(tmp_path: Path):
    file = written(tmp_path / "v.txt", "\n".join(SPECIAL).encode())
    name = vocabulary_file_name(file, vocabulary_in(file))
    assert read_vocabulary(file).name == name
    assert read_vocabulary(written(tmp_path / name, file.read_bytes())).name == name
    with pytest.raises(DataError, match="it is not the vocabulary that its run was trained with"):
        read_vocabulary(written(tmp_path / name, "\n".join([*SPECIAL, "dog"]).encode()))


def test_an_invalid_vocabulary_raises(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, content, message in (
        ("v.bin", b"", "list of tokens"),
        ("v.pkl", b"", "no end|broken"),
        ("v.txt", b"dog\ncat", r"\[PAD\], \[UNK\]"),
        ("v.txt", "\n".join([*SPECIAL, "dog", "dog"]).encode(), "'dog' occurs twice"),
        ("v.txt", b"\xff\xfe\x00", "utf-8"),
        ("v.spm", b"", "empty"),
        ("v.spm", b"\x80 no model", "not a SentencePiece model"),
        ("v.spm", model[: len(model) // 2 + 3], "SentencePiece model|tokens"),
        ("v.spm", trained(pad_id=0, unk_id=1, bos_id=2, eos_id=3), "as its tokens 0, 1 and 2"),
    ):
        with pytest.raises(DataError, match=message):
            read_vocabulary(written(tmp_path / name, content))
    with pytest.raises(DataError, match="cannot be read"):
        read_vocabulary(tmp_path / "nowhere.txt")
    monkeypatch.setattr(vocabularies, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="at most 1,000 bytes"):
        read_vocabulary(written(tmp_path / "v.spm", model))


def test_special_padding_and_unknown_tokens_are_in_the_vocabulary():
    for vocab in (vocabulary(BERT), vocabulary(CLIP), wordpiece("x", SPECIAL)):
        assert all(0 <= i < vocab.size for i in (*vocab.special, vocab.pad, vocab.unknown))
    assert vocabulary(CLIP).pad not in vocabulary(CLIP).special, "its id is also a word's"


def test_a_duplicate_token_is_detected_in_linear_time(tmp_path: Path):
    pieces = [*SPECIAL, *(f"p{i}" for i in range(50_000))]
    words = {word: i for i, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *pieces[5:]])}
    duplicate = f'{json.dumps(words)[:-1]}, "p49999": 7}}'
    for name, content, message in (
        ("a.txt", "\n".join([*pieces, pieces[-1]]), "the token 'p49999' occurs twice"),
        ("a.json", f'{{"word2idx": {duplicate}}}', "'p49999' occurs twice"),
    ):
        began = time.process_time()
        with pytest.raises(DataError, match=message):
            read_vocabulary(written(tmp_path / name, content.encode()))
        assert time.process_time() - began < 10  # quadratic code took minutes
