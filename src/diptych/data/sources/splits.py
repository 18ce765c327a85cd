"""Names of splits (train, val, test and their synonyms) and the random division of data without splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from diptych.data.sources.base import DataError
from diptych.utils.rng import uniform

SPLITS = ("train", "val", "test")
WORDS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "minival"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Synonyms of each split."""
DATASET_SPLITS = {
    **{"testa": "testA", "testb": "testB"},
    **dict.fromkeys(("test dev", "testdev"), "test-dev"),
    **dict.fromkeys(("test std", "teststd", "test standard"), "test-std"),
}
"""Splits of single data sets: RefCOCO's test sets of people and of objects, VQA's test servers."""
SEVERAL = "trainval"
"""Stands for names of more than one split, such as trainval or train2014+val2014."""
_YEAR, _DIGITS = r"(?<=[a-z])(?:19|20)\d\d$|^(?:19|20)\d\d$", r"\d+$"
_CAPITAL = r"(?<=[a-z0-9])(?=[A-Z][A-Za-z])"


@lru_cache(1024)  # a column repeats the same few words
def known_split(word: str) -> str | None:
    """Split that a word means: one of SPLITS, of DATASET_SPLITS' values, or SEVERAL; None for any other word.

    Ignores case, white space, separators at either end and a year at the end (``val2014``).
    """
    parts = [re.sub(_YEAR, "", part) for part in re.split(r"[\s_.+&/,;|-]+", word.lower())]
    splits = _splits_of_words([part for part in parts if part not in ("", "and")])
    return None if None in splits else _one(splits)


def named_split(path: Path) -> str | None:
    """Split named by the words of a file's name, as in `known_split`; None if there is none.

    Words end at characters that are neither letters nor digits and before capitals; digits or "set" at the end of a
    word are ignored: ``v2_val2014_questions.json``, ``captionsTrain.csv``, ``testset.csv``. A single final capital
    belongs to its word: ``testA``.
    """
    words = re.sub(_CAPITAL, " ", path.stem).lower()
    parts = [re.sub(_DIGITS, "", part).removesuffix("set") for part in re.split(r"[^a-z0-9]+", words)]
    return _one([split for split in _splits_of_words(parts) if split])


def _splits_of_words(words: Sequence[str]) -> list[str | None]:
    """Split of each word, or of each pair that is one name ("test", "dev"); None for words that are not a split."""
    splits, at = list[str | None](), 0
    while at < len(words):
        two = DATASET_SPLITS.get(" ".join(words[at : at + 2]))
        one = (
            SEVERAL
            if words[at] in ("trainval", "trainvaltest")
            else WORDS.get(words[at]) or DATASET_SPLITS.get(words[at])
        )
        splits.append(two or one)
        at += 2 if two and two != one else 1
    return splits


def _one(splits: Sequence[str | None]) -> str | None:
    """The split that all have in common; SEVERAL if they differ, None if there are none."""
    return SEVERAL if len(set(splits)) > 1 else next(iter(splits), None)


def split_of(word: str, where: str, own: Sequence[str] = ()) -> str:
    """Split that a word in a file or an argument means: one of SPLITS or of `own`, the further splits of the format.

    Raises DataError, which names `where`, for any other word.
    """
    known = known_split(word)
    if known in SPLITS or known in own:
        return str(known)
    if not word.strip():
        raise DataError(f"{where}: the split is empty; write train, val or test")
    if known == SEVERAL:
        raise DataError(f"{where}: {word!r} is more than one split; name one of {', '.join(SPLITS)}")
    if known is not None:
        raise DataError(f"{where}: split {word!r} does not exist in this format; rename it to one of {_known(own)}")
    raise DataError(f"{where}: split {word!r} is none of {_known(own)}; correct it")


def requested_split(word: str, data: str, own: Sequence[str] = ()) -> str:
    """Split that ``--split`` means for some ``--data``; the built-in world has further ones. Raises DataError."""
    if data.partition(":")[0] == "scenes" and known_split(word) not in SPLITS:
        return word
    return split_of(word, "--split", own)


def file_split(path: Path, own: Sequence[str] = ()) -> str | None:
    """Split that a file is named for; None if for none, so that its rows are to be divided.

    Raises DataError for a name with several splits, or with one that the format does not have.
    """
    named = named_split(path)
    if named is None or named in SPLITS or named in own:
        return named
    if named == SEVERAL:
        raise DataError(f"{path}: its name contains more than one split; use one file per split, or add a split column")
    raise DataError(f"{path}: split {named} does not exist in this format; rename the file")


def drawn_split(name: str, seed: int) -> str:
    """Random split of a name: 90 % train, 5 % val, 5 % test; a pure function of name and seed."""
    draw = uniform(seed, 0, [0], f"split of {name}", 1)[0, 0]
    return "train" if draw < 0.9 else "val" if draw < 0.95 else "test"


def drawn_splits(names: Sequence[str], images: Sequence[Hashable], seed: int) -> list[str]:
    """Random split of each row, the same for all rows of an image, drawn by the alphabetically first of its names."""
    first: dict[Hashable, str] = {}
    for name, image in zip(names, images, strict=True):
        first[image] = min(name, first.get(image, name))
    drawn = {image: drawn_split(name, seed) for image, name in first.items()}
    return [drawn[image] for image in images]


def counted(splits: Iterable[str]) -> str:
    """Counts of each split as a text, such as ``train 900, val 50, test 50``."""
    counts = Counter(splits)
    names = [*SPLITS, *sorted(set(counts) - set(SPLITS))]
    return ", ".join(f"{name} {counts[name]}" for name in names)


def _known(own: Sequence[str]) -> str:
    words = {split: [w for w, s in WORDS.items() if s == split and w != split] for split in SPLITS}
    return ", ".join([*(f"{split} ({', '.join(also)})" for split, also in words.items()), *own])
