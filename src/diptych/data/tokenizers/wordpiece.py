"""BERT's uncased WordPiece tokenizer, with its own vocabulary or one trained on a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from diptych.data.tokenizers.vocabulary import Vocabulary, first_repeated

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSIDE = "##"
LONGEST_WORD = 100
MAX_LETTERS = 1000


class WordPieces:
    """WordPiece: lower case, accents stripped, split at punctuation, then greedy longest match; ## continues a word."""

    def __init__(self, tokens: tuple[str, ...]):
        ids = {token: i for i, token in enumerate(tokens)}
        self._pipeline = _pipeline(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
        self._pipeline.decoder = decoders.WordPiece()

    def encode(self, text: str) -> list[int]:
        return self._pipeline.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._pipeline.decode(ids)

    def opens(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return tuple(not token.startswith(INSIDE) for token in tokens)

    def closes(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return (False,) * len(tokens)


def wordpiece(name: str, tokens: tuple[str, ...]) -> Vocabulary:
    """Vocabulary of these tokens. Raises ValueError if one occurs twice, or a special token is missing."""
    if (twice := first_repeated(tokens)) is not None:
        raise ValueError(f"the token {twice[:LONGEST_WORD]!r} occurs twice")
    missing = [token for token in SPECIAL if token not in tokens]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be among the tokens")
    return Vocabulary(name, tokens, *map(tokens.index, SPECIAL), subwords=WordPieces(tokens))


def train_wordpiece(texts: Iterable[str], size: int) -> tuple[str, ...]:
    """WordPiece vocabulary of at most `size` tokens, trained on texts.

    Special tokens, the most frequent characters, then merges of the most frequent pairs that occur at least twice.
    Raises ValueError if special tokens and characters exceed `size`.
    """
    blank = _pipeline(models.WordPiece(unk_token="[UNK]"))
    words: Counter[str] = Counter()
    for text in texts:
        words.update(w for w, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(text)))
    used: Counter[str] = Counter()
    for word, times in words.items():
        used.update({letter: times * n for letter, n in Counter(word).items()})
    letters = sorted(sorted(used, key=lambda letter: (-used[letter], letter))[:MAX_LETTERS])
    # the trainer assigns ids to characters in no fixed order, and breaks ties by id: so characters get their ids here
    front = [*SPECIAL, *letters, *(INSIDE + letter for letter in letters)]
    if len(front) > size:
        raise ValueError(f"special tokens and characters are already {len(front)} tokens; raise --size above it")
    known = set(letters)
    repeated = (word for word, times in sorted(words.items()) if known.issuperset(word) for _ in range(times))
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=front, show_progress=False, continuing_subword_prefix=INSIDE
    )
    blank.train_from_iterator(repeated, trainer)
    ids = blank.get_vocab(with_added_tokens=True)
    return tuple(sorted(ids, key=lambda token: ids[token]))


def _pipeline(model: models.WordPiece) -> Pipeline:
    """Tokenizer pipeline with BERT's normalisation and splitting into words."""
    made = Pipeline(model)
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made
