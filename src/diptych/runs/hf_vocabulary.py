"""Tokenizer files of Hugging Face folders: checked against the vocabulary that an imported run would use, and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych.checkpoints.huggingface.folder import read_json_object
from diptych.checkpoints.read import WeightsError
from diptych.data.tokenizers.bpe import BytePairs
from diptych.data.tokenizers.tokenizer import BERT, CLIP, vocabulary
from diptych.data.tokenizers.vocabulary import Vocabulary
from diptych.data.tokenizers.wordpiece import WordPieces

LIST, PAIRS, TOKENIZER, OPTIONS = "vocab.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json"
MERGES = "merges.txt"
ADDED = ("[DEC]", "[ENC]")  # BLIP's tokens after those of BERT's vocabulary: the model here adds them itself
CLIP_SPECIAL = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
READS_CLIP, READS_BERT = ("clip", "open_clip"), ("vilt", "blip")


def custom_vocabulary(folder: Path, system: str) -> Path | None:
    """The vocabulary file that the run must use; None if the bundled vocabulary is the same, or there is no file.

    Raises WeightsError if the folder's tokenizer works differently and cannot be used.
    """
    if system in READS_CLIP:
        for name, ids in _token_ids(folder, (PAIRS, TOKENIZER)):
            _check_clip(folder / name, {CLIP_SPECIAL.get(token, token): i for token, i in ids.items()})
        return None
    if system not in READS_BERT:
        return None
    _check_options(folder)
    if (folder / LIST).is_file():
        lines = (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
        if _equals_bundled(lines):
            return None
        return folder / LIST
    for name, ids in _token_ids(folder, (TOKENIZER,)):
        if not _equals_bundled(sorted(ids, key=lambda token: ids[token])):
            raise WeightsError(
                f"{folder / name}: its tokens are not those of {BERT}; write them in order, one per line, to a file "
                "and give --vocabulary FILE"
            )
    return None


def _equals_bundled(tokens: list[str]) -> bool:
    return [token for token in tokens if token not in ADDED] == list(vocabulary(BERT).tokens)


def _token_ids(folder: Path, names: tuple[str, ...]) -> list[tuple[str, dict[str, int]]]:
    """Name, and ids by token, of the first of some files that exists; an empty list if none does."""
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        ids: Any = read_json_object(path)
        if name == TOKENIZER:
            ids = _model_vocabulary(path, ids)
        if not isinstance(ids, dict) or not all(isinstance(i, int) for i in ids.values()):
            raise WeightsError(f"{path}: expected tokens and their integer ids")
        return [(name, ids)]
    return []


def _model_vocabulary(path: Path, content: dict[str, Any]) -> Any:
    """The vocabulary of a tokenizer.json, added tokens included. Raises WeightsError unless it lower-cases text."""
    model, normalizer = content.get("model"), content.get("normalizer")
    if not isinstance(model, dict) or model.get("type") not in ("WordPiece", "BPE"):
        raise WeightsError(
            f"{path}: model is {model.get('type') if isinstance(model, dict) else model!r}; expected WordPiece or BPE"
        )
    if isinstance(normalizer, dict) and normalizer.get("lowercase") is False:
        raise WeightsError(f"{path}: normalizer.lowercase is False; expected True: texts are lower-cased here")
    ids, added = model.get("vocab"), content.get("added_tokens") or []
    if isinstance(ids, dict) and all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added
    ):
        return ids | {token["content"]: token.get("id") for token in added}
    return ids


def _check_options(folder: Path) -> None:
    """Raises WeightsError if an option that changes how BERT's tokenizer splits text is not the default."""
    path = folder / OPTIONS
    options = read_json_object(path) if path.is_file() else {}
    for key, expected in (("do_lower_case", True), ("strip_accents", None), ("tokenize_chinese_chars", True)):
        if key in options and options[key] not in (expected, True if key == "strip_accents" else expected):
            raise WeightsError(f"{path}: {key} is {options[key]!r}; expected {expected!r}: nothing else is supported")


def _check_clip(path: Path, ids: dict[str, int]) -> None:
    """Raises WeightsError unless the tokens and their ids are those of CLIP's vocabulary."""
    clip_ids = {token: i for i, token in enumerate(vocabulary(CLIP).tokens)}
    wrong = next((token for token in clip_ids if ids.get(token) != clip_ids[token]), None)
    wrong = wrong or next((token for token in ids if token not in clip_ids), None)
    if wrong is not None:
        raise WeightsError(
            f"{path}: has {wrong!r} at {ids.get(wrong)}, CLIP's vocabulary at {clip_ids.get(wrong)}: no other "
            "byte pairs are supported"
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
