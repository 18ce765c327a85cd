"""Vocabularies in a tokenizer.json of Hugging Face: BERT's uncased WordPiece and CLIP's byte-pair encoding.

Whatever in the file changes how texts are tokenized must be as the tokenizers of this folder have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diptych.config.validation import preview
from diptych.data.tokenizers.bpe import BEGIN_TEXT, END, END_TEXT, BytePairs, byte_letters
from diptych.data.tokenizers.vocabulary import Vocabulary, first_repeated
from diptych.data.tokenizers.wordpiece import INSIDE, LONGEST_WORD, wordpiece

CLIP_SPECIAL = {"<|startoftext|>": BEGIN_TEXT, "<|endoftext|>": END_TEXT}
"""CLIP's special tokens as Hugging Face calls them, and our names of them."""
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ANY = object()  # a key that does not change which tokens a text has
_SUPPORTED: dict[str, dict[str, Any]] = {
    "WordPiece": {
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": INSIDE,
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": _ANY,
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": (None, True),
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    },
    "BPE": {
        "model": {
            "type": "BPE",
            "dropout": (None, 0.0),
            "unk_token": ("<|endoftext|>", None),
            "continuing_subword_prefix": ("", None),
            "end_of_word_suffix": END,
            "fuse_unk": _ANY,  # every byte has a token, so that none is unknown
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _ANY,
            "merges": _ANY,
        },
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": _ANY, "use_regex": _ANY},
            ],
        },
    },
}
"""The supported values of each key, by the type of the model; a tuple: any of several. An absent key has the first."""


def vocabulary_of_tokenizer_json(name: str, content: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a tokenizer.json. Raises ValueError, which names the key, for one that works differently."""
    tokens = tokens_of_tokenizer_json(content)
    if content["model"]["type"] == "WordPiece":
        return wordpiece(name, tokens)
    return _byte_pairs(name, tokens, content["model"])


def tokens_of_tokenizer_json(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens in the order of their ids, special tokens included. Raises ValueError as above."""
    model = content.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(kind, str) or kind not in _SUPPORTED:
        raise ValueError(f"model.type is {preview(kind)}; expected {' or '.join(_SUPPORTED)}")
    for key, expected in _SUPPORTED[kind].items():
        _check(content.get(key), expected, key)
    _check_ends(content.get("post_processor"), ("[CLS]", "[SEP]") if kind == "WordPiece" else tuple(CLIP_SPECIAL))
    ids, added = model.get("vocab"), content.get("added_tokens") or []
    if not isinstance(ids, dict) or not isinstance(added, list):
        raise ValueError("model.vocab and added_tokens: expected an object of tokens and ids, and a list")
    ids = dict(ids)
    for i, token in enumerate(added):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or token.get("special") is False:
            raise ValueError(
                f"added_tokens.{i} is {preview(token)}; expected a special token: others are not supported"
            )
        ids[token["content"]] = token.get("id")
    if sorted(i if type(i) is int else -1 for i in ids.values()) != list(range(len(ids))):
        raise ValueError(f"model.vocab: the ids of its {len(ids):,} tokens must be 0 to {len(ids) - 1:,}, each once")
    return tuple(sorted(ids, key=lambda token: ids[token]))


def _check(value: Any, expected: Any, key: str) -> None:
    """Raises ValueError, which names the first key that differs, unless a value of the file is as expected."""
    if isinstance(expected, dict) and isinstance(value, dict):
        for name, part in value.items():
            if name not in expected:
                raise ValueError(f"{key}.{name} is {preview(part)}; nothing is known of such a key")
        for name, part in expected.items():
            if name in value or name == "type":
                _check(value.get(name), part, f"{key}.{name}")
    elif isinstance(expected, list) and isinstance(value, list) and len(value) == len(expected):
        for i, (part, wanted) in enumerate(zip(value, expected, strict=True)):
            _check(part, wanted, f"{key}.{i}")
    elif expected is not _ANY and not any(
        type(value) is type(one) and value == one for one in (expected if isinstance(expected, tuple) else (expected,))
    ):
        wanted = expected["type"] if isinstance(expected, dict) and "type" in expected else expected
        words = " or ".join(map(repr, wanted)) if isinstance(wanted, tuple) else preview(wanted)
        raise ValueError(f"{key} is {preview(value)}; expected {words}: nothing else is supported")


def _check_ends(processor: Any, ends: tuple[str, ...]) -> None:
    """Raises ValueError unless the post-processor, if there is one, puts these tokens before and after a text."""
    if processor is None:
        return
    kind = processor.get("type") if isinstance(processor, dict) else None
    if kind == "TemplateProcessing":
        single = processor.get("single")
        template = single if isinstance(single, list) else []
        parts = [next(iter(part.values())) for part in template if isinstance(part, dict) and part]
        found = tuple(part.get("id") for part in parts if isinstance(part, dict))
        expected = (ends[0], "A", ends[1])
    else:
        tokens = [processor.get(name) for name in ("cls", "sep")] if isinstance(processor, dict) else []
        found, expected = tuple(token[0] for token in tokens if isinstance(token, list) and token), ends
    if found != expected:
        raise ValueError(
            f"post_processor is {preview(processor)}; expected {ends[0]} before a text and {ends[1]} after it"
        )


def _byte_pairs(name: str, tokens: tuple[str, ...], model: Mapping[str, Any]) -> Vocabulary:
    """Vocabulary of CLIP's byte-pair encoding with other merges. Raises ValueError."""
    listed, known = model.get("merges"), set(tokens)
    if not isinstance(listed, list):
        raise ValueError(f"model.merges is {preview(listed)}; expected a list of pairs of tokens")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in listed]
    for i, pair in enumerate(merges):
        texts = isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        if not texts or not known.issuperset([*pair, "".join(pair)]):
            raise ValueError(f"model.merges.{i} is {preview(pair)}; expected two tokens that make a third")
    letters = byte_letters().values()
    needed = [*letters, *(letter + END for letter in letters), *CLIP_SPECIAL]
    if missing := [token for token in needed if token not in known]:
        raise ValueError(
            f"model.vocab lacks {preview(missing[0])}; expected every byte, and {' and '.join(CLIP_SPECIAL)}"
        )
    tokens = tuple(CLIP_SPECIAL.get(token, token) for token in tokens)
    if (twice := first_repeated(tokens)) is not None:
        raise ValueError(f"the token {preview(twice)} occurs twice")
    begin, end = tokens.index(BEGIN_TEXT), tokens.index(END_TEXT)
    pairs = BytePairs(tokens, [(left, right) for left, right in merges])
    return Vocabulary(name, tokens, 0, end, begin, end, begin, pairs, pad_is_word=True)
