"""Splits: the words that the field has for train, val and test, and the draw that divides data which names none."""

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
    "train": "train", "training": "train", "restval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "minival": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
OWN = {
    "testa": "testA", "testb": "testB", "test dev": "test-dev", "testdev": "test-dev",
    "test std": "test-std", "teststd": "test-std", "test standard": "test-std",
}  # fmt: skip
"""Splits that single datasets have beside those: RefCOCO's test sets of people and of things, VQA's test servers."""
SEVERAL = "trainval"
"""What stands for a name of more than one split, such as trainval or train2014+val2014."""
_YEAR, _DIGITS = r"(?<=[a-z])(?:19|20)\d\d$|^(?:19|20)\d\d$", r"\d+$"
_CAPITAL = r"(?<=[a-z0-9])(?=[A-Z][A-Za-z])"


@lru_cache(1024)  # a column says the same few words in each row
def known_split(word: str) -> str | None:
    """The split that a word means: one of SPLITS, of OWN's values, or SEVERAL; None for any other word.

    Case, blanks, separators at either end and a year behind it (``val2014``) do not count.
    """
    parts = [re.sub(_YEAR, "", part) for part in re.split(r"[\s_.+&/,;|-]+", word.lower())]
    meant = _meant([part for part in parts if part not in ("", "and")])
    return None if None in meant else _one(meant)


def named_split(path: Path) -> str | None:
    """The split that a file's name has among its words, as `known_split` gives it; None where it has none.

    A word ends at whatever is neither letter nor digit and before a capital, and digits or "set" behind it do not count:
    ``v2_val2014_questions.json``, ``captionsTrain.csv``, ``testset.csv``. A single capital is the word's own: ``testA``.
    """
    words = re.sub(_CAPITAL, " ", path.stem).lower()
    parts = [re.sub(_DIGITS, "", part).removesuffix("set") for part in re.split(r"[^a-z0-9]+", words)]
    return _one([split for split in _meant(parts) if split])


def _meant(words: Sequence[str]) -> list[str | None]:
    """The split that each word means, or each two where they are one ("test", "dev"); None for what means none."""
    found, at = list[str | None](), 0
    while at < len(words):
        two = OWN.get(" ".join(words[at : at + 2]))
        one = SEVERAL if words[at] in ("trainval", "trainvaltest") else WORDS.get(words[at]) or OWN.get(words[at])
        found.append(two or one)
        at += 2 if two and two != one else 1
    return found


def _one(splits: Sequence[str | None]) -> str | None:
    """The split of which all are, SEVERAL where they are of more, None where there are none."""
    return SEVERAL if len(set(splits)) > 1 else next(iter(splits), None)


def split_of(word: str, where: str, own: Sequence[str] = ()) -> str:
    """The split that a word in a file or an argument means. Raises DataError, which names `where`, for any other than SPLITS
    and those of the reader's `own`.
    """
    known = known_split(word)
    if known in SPLITS or known in own:
        return str(known)
    if not word.strip():
        raise DataError(f"{where}: the split is empty; write train, val or test")
    if known == SEVERAL:
        raise DataError(f"{where}: {word!r} is more than one split; name each apart ({', '.join(SPLITS)})")
    if known is not None:
        raise DataError(
            f"{where}: {word!r} is a split of single datasets, which is not read here; rename it to one of {_known(own)}"
        )
    raise DataError(f"{where}: split {word!r} is none of {_known(own)}; correct it")


def asked_split(word: str, data: str, own: Sequence[str] = ()) -> str:
    """The split that ``--split`` means for some ``--data``. Raises DataError. The built-in world has splits of its own."""
    if data.partition(":")[0] == "scenes" and known_split(word) not in SPLITS:
        return word
    return split_of(word, "--split", own)


def file_split(path: Path, own: Sequence[str] = ()) -> str | None:
    """The split that a file is of by its name; None where it is named for none, and is to be divided. Raises DataError for
    a name of several splits, or of one that is not the reader's.
    """
    named = named_split(path)
    if named is None or named in SPLITS or named in own:
        return named
    if named == SEVERAL:
        raise DataError(
            f"{path}: its name has more than one split; name a file for each, or give its rows a split column"
        )
    raise DataError(f"{path}: {named} is a split of single datasets, which is not read here; rename the file")


def drawn_split(name: str, seed: int) -> str:
    """90 % train, 5 % val, 5 % test: a pure function of the name and the seed."""
    draw = uniform(seed, 0, [0], f"split of {name}", 1)[0, 0]
    return "train" if draw < 0.9 else "val" if draw < 0.95 else "test"


def drawn_splits(names: Sequence[str], pictures: Sequence[Hashable], seed: int) -> list[str]:
    """The split of each row, of a picture's rows the same: drawn by the first in the alphabet of the picture's names."""
    first: dict[Hashable, str] = {}
    for name, picture in zip(names, pictures, strict=True):
        first[picture] = min(name, first.get(picture, name))
    drawn = {picture: drawn_split(name, seed) for picture, name in first.items()}
    return [drawn[picture] for picture in pictures]


def counted(splits: Iterable[str]) -> str:
    """``train 900, val 50, test 50``: how often each of SPLITS comes, and others that do."""
    counts = Counter(splits)
    names = [*SPLITS, *sorted(set(counts) - set(SPLITS))]
    return ", ".join(f"{name} {counts[name]}" for name in names)


def _known(own: Sequence[str]) -> str:
    words = {split: [w for w, s in WORDS.items() if s == split and w != split] for split in SPLITS}
    return ", ".join([*(f"{split} ({', '.join(also)})" for split, also in words.items()), *own])
