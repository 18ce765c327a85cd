"""A sentencepiece model (Kudo & Richardson 2018) with ids as XLM-R has them, which BEiT-3 reads texts with."""

from __future__ import annotations

from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor

from diptych.data.tokenizers.vocabulary import Vocabulary

BEGIN, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
FRONT = (BEGIN, PAD, END, UNKNOWN)
"""What stands at the ids 0 to 3, where the model itself has <unk>, <s> and </s> at 0 to 2; its pieces follow, moved by one."""
SPACE = "▁"


class SentencePieces:
    """As the model cuts and joins; a piece that begins a word begins with ▁."""

    def __init__(self, model: SentencePieceProcessor, pieces: tuple[str, ...]):
        self._model, self._pieces = model, pieces

    def encode(self, text: str) -> list[int]:
        unknown = FRONT.index(UNKNOWN)
        return [i + 1 if i >= len(FRONT) - 1 else unknown for i in self._model.encode(text)]

    def decode(self, ids: list[int]) -> str:
        return self._model.decode([self._pieces[i] for i in ids])

    def opens(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        return tuple(piece.startswith(SPACE) for piece in pieces)

    def closes(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        return (False,) * len(pieces)


def sentencepieces(name: str, held: bytes) -> Vocabulary:
    """The vocabulary of a sentencepiece model's file. Raises ValueError where it is none, or its first pieces are others than XLM-R's."""
    if not held:
        raise ValueError("it is empty")
    try:
        model = SentencePieceProcessor(model_proto=held)
        own = [model.id_to_piece(i) for i in range(len(model))]
    except (RuntimeError, OSError, UnicodeDecodeError):
        raise ValueError("it is no sentencepiece model") from None
    special = model.unk_id(), model.bos_id(), model.eos_id()
    if special != (0, 1, 2):
        raise ValueError(f"{UNKNOWN}, {BEGIN} and {END} are its pieces {special}, not 0, 1 and 2")
    pieces = (*FRONT, *own[len(FRONT) - 1 :], MASK)
    return Vocabulary(name, pieces, 1, 3, 0, 2, len(pieces) - 1, SentencePieces(model, pieces))
