"""SentencePiece tokenizer (Kudo & Richardson 2018) with XLM-R's token ids, as in BEiT-3."""

from __future__ import annotations

from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor

from diptych.data.tokenizers.vocabulary import Vocabulary

BEGIN, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
FRONT = (BEGIN, PAD, END, UNKNOWN)
"""Tokens 0 to 3. The model itself has <unk>, <s> and </s> at 0 to 2; its other tokens follow, shifted by one."""
SPACE = "▁"


class SentencePieces:
    """SentencePiece tokenizer; tokens that begin a word start with ▁."""

    def __init__(self, model: SentencePieceProcessor, tokens: tuple[str, ...]):
        self._model, self._tokens = model, tokens

    def encode(self, text: str) -> list[int]:
        unknown = FRONT.index(UNKNOWN)
        return [i + 1 if i >= len(FRONT) - 1 else unknown for i in self._model.encode(text)]

    def decode(self, ids: list[int]) -> str:
        return self._model.decode([self._tokens[i] for i in ids])

    def opens(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return tuple(token.startswith(SPACE) for token in tokens)

    def closes(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return (False,) * len(tokens)


def sentencepieces(name: str, data: bytes) -> Vocabulary:
    """Vocabulary of a SentencePiece model file.

    Raises ValueError if it is not one, or its first tokens are not those of XLM-R.
    """
    if not data:
        raise ValueError("it is empty")
    try:
        model = SentencePieceProcessor(model_proto=data)
        own = [model.id_to_piece(i) for i in range(len(model))]
    except (RuntimeError, OSError, UnicodeDecodeError):
        raise ValueError("it is not a SentencePiece model") from None
    special = model.unk_id(), model.bos_id(), model.eos_id()
    if special != (0, 1, 2):
        raise ValueError(f"expected {UNKNOWN}, {BEGIN} and {END} as its tokens 0, 1 and 2, got {special}")
    tokens = (*FRONT, *own[len(FRONT) - 1 :], MASK)
    return Vocabulary(name, tokens, 1, 3, 0, 2, len(tokens) - 1, SentencePieces(model, tokens))
