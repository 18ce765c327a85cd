"""Vocabularies read from tokenizer.json: ids equal to transformers', and every other setting refused by name."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diptych.data.sources.base import DataError
from diptych.data.tokenizers.bpe import END, byte_letters
from diptych.data.tokenizers.tokenizer import Tokenizer, read_vocabulary
from diptych.data.tokenizers.tokenizer_json import vocabulary_of_tokenizer_json
from diptych.data.tokenizers.wordpiece import train_wordpiece

transformers = pytest.importorskip("transformers")

LETTERS = "aabbccddeest  SĂé0019!?.,-'s北я\t\n"


def random_texts(seed: int, number: int = 200) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randint(0, 40))) for _ in range(number)]


def byte_pair_vocabulary(seed: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The tokens of a byte-pair encoding of CLIP's form with random merges of frequent letters, and the merges."""
    draw, letters = random.Random(seed), list(byte_letters().values())
    tokens, merges = [*letters, *(letter + END for letter in letters)], list[tuple[str, str]]()
    parts = [*"abcdest019", "e" + END, "s" + END, "t" + END, "d" + END]
    while len(merges) < 120:
        left, right = draw.choice([part for part in parts if not part.endswith(END)]), draw.choice(parts)
        if left + right not in tokens:
            merges.append((left, right))
            tokens.append(left + right)
            parts.append(left + right)
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def saved(kind: str, folder: Path, seed: int = 0) -> Any:
    """A tokenizer of transformers with another vocabulary than the published one, saved as tokenizer.json alone."""
    if kind == "WordPiece":
        tokens = train_wordpiece(random_texts(seed), 120)
        theirs = transformers.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    else:
        vocab, merges = byte_pair_vocabulary(seed)
        theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    theirs.save_pretrained(folder)
    assert not any((folder / name).exists() for name in ("vocab.txt", "vocab.json", "merges.txt"))
    return theirs


@pytest.mark.parametrize("kind", ["WordPiece", "BPE"])
@pytest.mark.parametrize("seed", [0, 1])
def test_texts_have_the_ids_of_transformers(kind: str, seed: int, tmp_path: Path):
    theirs = saved(kind, tmp_path, seed)
    known = read_vocabulary(tmp_path / "tokenizer.json")
    ours, texts = Tokenizer(24, known), random_texts(seed + 100)
    ids = [row[mask].tolist() for row, mask in zip(*(lambda x: (x.ids, x.mask))(ours.encode(texts)), strict=True)]
    assert ids == theirs(texts, truncation=True, max_length=24).input_ids
    assert known.size == len(theirs) and len({i for row in ids for i in row}) > 45
    if kind == "WordPiece":
        assert [ours.decode(row) for row in ids] == theirs.batch_decode(ids, skip_special_tokens=True)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value that are neither objects nor lists."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


@pytest.mark.parametrize("kind", ["WordPiece", "BPE"])
def test_every_setting_that_changes_tokens_is_refused_by_name(kind: str, tmp_path: Path):
    saved(kind, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    paths = [(part, *path) for part in ("model", "normalizer", "pre_tokenizer") for path in leaves(content[part])]
    paths = [path for path in paths if path[1] not in ("vocab", "merges")]
    free = {"fuse_unk", "trim_offsets", "use_regex"}
    assert len(paths) - sum(path[-1] in free for path in paths) == (10 if kind == "WordPiece" else 20)
    for path in paths:
        changed = copy.deepcopy(content)
        was = at(changed, path)
        at(changed, path[:-1])[path[-1]] = (not was) if isinstance(was, bool) else "other"
        if path[-1] in free:
            assert vocabulary_of_tokenizer_json("x", changed).tokens
            continue
        with pytest.raises(
            ValueError, match=rf"^{'.'.join(map(str, path))} is ('other'|True|False); ?expected"
        ) as error:
            vocabulary_of_tokenizer_json("x", changed)
        assert "\n" not in str(error.value)
    for part in ("normalizer", "pre_tokenizer"):
        with pytest.raises(ValueError, match=rf"^{part} is None; expected '\w+'"):
            vocabulary_of_tokenizer_json("x", content | {part: None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram"}}, r"model.type is 'Unigram'; expected WordPiece or BPE"),
        ({"added_tokens": [{"content": "dog", "id": 120, "special": False}]}, r"added_tokens.0 is .*a special token"),
        ({"added_tokens": [{"content": "[X]", "id": 7, "special": True}]}, r"model.vocab: the ids of its 121 tokens"),
        ({"post_processor": {"type": "BertProcessing", "cls": ["[SEP]", 3], "sep": ["[CLS]", 2]}}, "post_processor is"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}},
            "post_processor is",
        ),
        ({"post_processor": []}, "post_processor is"),
        ({"post_processor": {"type": "TemplateProcessing", "single": None}}, "post_processor is"),
        ({"model": {"type": ["WordPiece"]}}, r"model.type is \['WordPiece'\]; expected WordPiece or BPE"),
    ],
)
def test_what_no_tokenizer_here_does_is_refused(change: dict[str, Any], message: str, tmp_path: Path):
    saved("WordPiece", tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    with pytest.raises(DataError, match=message):
        read_vocabulary(path)


def test_a_token_that_occurs_twice_is_refused(tmp_path: Path):
    saved("WordPiece", tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"[UNK]": 1', '"[UNK]": 1, "[UNK]": 1', 1), encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"'\[UNK\]' occurs twice"):
        read_vocabulary(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model["vocab"].pop("a"), "model.merges.0 is|the ids of its"),
        (lambda model: model["merges"].append(["a", "zzz"]), "model.merges.120 is .*expected two tokens"),
        (lambda model: model["merges"].append(3), "model.merges.120 is 3"),
        (lambda model: model["merges"].append(["a", 1]), r"model.merges.120 is \['a', 1\]"),
        (lambda model: model["merges"].append([["a"], "b"]), "model.merges.120 is "),
        (lambda model: model.update(merges=5), "model.merges is 5; expected a list"),
    ],
)
def test_byte_pairs_that_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path):
    saved("BPE", tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    change(content["model"])
    with pytest.raises(ValueError, match=message):
        vocabulary_of_tokenizer_json("x", content)
