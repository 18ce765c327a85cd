"""Tokenizer files of Hugging Face folders: checked against the vocabulary that an imported run would use, and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.checkpoints.huggingface.folder import read_json_object
from diptych.checkpoints.read import WeightsError
from diptych.data.tokenizers.bpe import BytePairs
from diptych.data.tokenizers.tokenizer import BERT, CLIP, vocabulary
from diptych.data.tokenizers.tokenizer_json import CLIP_SPECIAL, vocabulary_of_tokenizer_json
from diptych.data.tokenizers.vocabulary import Vocabulary
from diptych.data.tokenizers.wordpiece import WordPieces

LIST, PAIRS, TOKENIZER, OPTIONS = "vocab.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json"
MERGES = "merges.txt"
ADDED = ("[DEC]", "[ENC]")  # BLIP's tokens after those of BERT's vocabulary: the model here adds them itself
READS_CLIP, READS_BERT = ("clip", "open_clip"), ("vilt", "blip")


def custom_vocabulary(folder: Path, system: str) -> Path | None:
    """The vocabulary file that the run must use; None if the bundled vocabulary is the same, or there is no file.

    Raises WeightsError if the folder's tokenizer works differently and cannot be used.
    """
    if system in READS_CLIP:
        return _custom_byte_pairs(folder)
    if system not in READS_BERT:
        return None
    _check_options(folder)
    if (folder / LIST).is_file():
        lines = (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
        return None if _equals_bundled(lines) else folder / LIST
    known = _tokenizer_json(folder, WordPieces)
    return None if known is None or _equals_bundled(known.tokens) else folder / TOKENIZER


def _equals_bundled(tokens: Sequence[str]) -> bool:
    return [token for token in tokens if token not in ADDED] == list(vocabulary(BERT).tokens)


def _custom_byte_pairs(folder: Path) -> Path | None:
    """The tokenizer.json of a vocabulary for CLIP's tokenizer that is not CLIP's. Raises WeightsError."""
    known = _tokenizer_json(folder, BytePairs)
    if known is None:
        if (folder / PAIRS).is_file():
            _check_clip(folder / PAIRS)
        return None
    own, clip = known.subwords, vocabulary(CLIP)
    assert isinstance(own, BytePairs) and isinstance(clip.subwords, BytePairs)
    if (known.tokens, own.merges) == (clip.tokens, clip.subwords.merges):
        return None
    if known.sep != known.size - 1:
        raise WeightsError(
            f"{folder / TOKENIZER}: its end token is {known.sep} of {known.size:,}; expected the last: the model finds "
            "the end of a text by its largest id"
        )
    return folder / TOKENIZER


def _tokenizer_json(folder: Path, kind: type) -> Vocabulary | None:
    """The vocabulary of the folder's tokenizer.json; None if there is no such file. Raises WeightsError."""
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    try:
        known = vocabulary_of_tokenizer_json(TOKENIZER, read_json_object(path))
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    if not isinstance(known.subwords, kind):
        expected, got = ("WordPiece", "BPE") if kind is WordPieces else ("BPE", "WordPiece")
        raise WeightsError(f"{path}: model.type is {got!r}; expected {expected!r} for this model")
    return known


def _check_options(folder: Path) -> None:
    """Raises WeightsError if an option that changes how BERT's tokenizer splits text is not the default."""
    path = folder / OPTIONS
    options = read_json_object(path) if path.is_file() else {}
    for key, expected in (("do_lower_case", True), ("strip_accents", None), ("tokenize_chinese_chars", True)):
        if key in options and options[key] not in (expected, True if key == "strip_accents" else expected):
            raise WeightsError(f"{path}: {key} is {options[key]!r}; expected {expected!r}: nothing else is supported")


def _check_clip(path: Path) -> None:
    """Raises WeightsError unless the tokens and ids of a vocab.json are those of CLIP's vocabulary."""
    read: Any = read_json_object(path)
    if not all(isinstance(i, int) for i in read.values()):
        raise WeightsError(f"{path}: expected tokens and their integer ids")
    ids = {CLIP_SPECIAL.get(token, token): i for token, i in read.items()}
    clip_ids = {token: i for i, token in enumerate(vocabulary(CLIP).tokens)}
    wrong = next((token for token in clip_ids if ids.get(token) != clip_ids[token]), None)
    wrong = wrong or next((token for token in ids if token not in clip_ids), None)
    if wrong is not None:
        raise WeightsError(
            f"{path}: has {wrong!r} at {ids.get(wrong)}, CLIP's vocabulary at {clip_ids.get(wrong)}: other byte pairs "
            f"are read from a {TOKENIZER} only"
        )


def tokenizer_files(known: Vocabulary, max_length: int, processor: str) -> dict[str, str]:
    """The content of each tokenizer file of a Hugging Face folder, by file name; none for other kinds than BERT's and CLIP's.

    Args:
        known: the run's vocabulary.
        max_length: tokens of a text at most.
        processor: Hugging Face's class for images and texts together.
    """
    options: dict[str, Any] = {"model_max_length": max_length, "processor_class": processor}
    if isinstance(known.subwords, WordPieces):
        names = {"pad": known.pad, "unk": known.unknown, "cls": known.cls, "sep": known.sep, "mask": known.mask}
        options |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        options |= {f"{name}_token": known.tokens[token] for name, token in names.items()}
        return {LIST: "\n".join(known.tokens) + "\n", OPTIONS: _json(options)}
    if not isinstance(known.subwords, BytePairs):
        return {}
    begin, end = CLIP_SPECIAL
    theirs = {ours: name for name, ours in CLIP_SPECIAL.items()}
    options |= {"tokenizer_class": "CLIPTokenizer", "bos_token": begin}
    options |= dict.fromkeys(("eos_token", "pad_token", "unk_token"), end)
    ids = {theirs.get(token, token): i for i, token in enumerate(known.tokens)}
    merges = ["#version: 0.2", *(f"{left} {right}" for left, right in known.subwords.merges)]
    return {PAIRS: _json(ids), MERGES: "\n".join(merges) + "\n", OPTIONS: _json(options)}


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
