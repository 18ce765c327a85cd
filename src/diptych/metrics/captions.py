"""A caption's words, as the official caption scores count them: the Penn Treebank's, in lower case, most marks left out.

How near captions are to what people wrote: BLEU, ROUGE-L and CIDEr-D, in pure Python.

Equal to the official scripts of COCO (pycocoevalcap 1.2), their slips included, since published scores went through them.
Every function takes words (see `metrics.words`), one candidate and its references a picture.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ALIKE = str.maketrans({"’": "'", "‘": "'", "´": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_DROPPED = {"'", '"', "`", ".", "...", "?", "!", ",", ":", "-", "--", ";"}
_TWO_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b")
_NOT = re.compile(r"(?<=[a-z])n't\b")

_ENDING = r"'(?:s|m|d|ll|re|ve)(?!\w)"
_POINTED = r"(?:[a-z]\.){2,}|\b(?:mr|mrs|ms|dr|jr|sr|st|vs|etc|prof|gen|lt|sgt|capt|inc|co|corp|ltd)\."
_WORD = re.compile(
    rf"n't\b|'n'|'\d0s|{_ENDING}|o'clock|ma'am|{_POINTED}|\d+(?:[.,:/]\d+)+|\w+(?:\.(?:com|org|net)\b|[-/]\w+)*"
    r"|\.{2,}|-{2,}|[?!]{2,}|\S"
)


def caption_words(caption: str) -> list[str]:
    """The words of a caption in lower case: 's, n't, 're and their like by themselves; hyphened words, numbers and
    abbreviations whole; quotes, full stops, commas, colons, semicolons, dashes, question and exclamation marks left out.

    Brackets stay as words ("-lrb-"): the official scripts drop them in upper case alone, and published scores have them.
    Differs: those scripts call a Java program, Stanford's PTBTokenizer 3.4.1, which knows more abbreviations, and cuts
    addresses and emoticons by rules of its own. Of Flickr8k's 35,000 captions of train and val 3 are cut otherwise here.
    """
    text = _TWO_WORDS.sub(lambda m: " ".join(part for part in m.groups() if part), caption.translate(_ALIKE).lower())
    found: list[str] = [_BRACKETS.get(word) or word for word in _WORD.findall(_NOT.sub(" n't", text))]
    return [word for word in found if word not in _DROPPED and set(word) not in ({"."}, {"-"})]


Words = Sequence[str]
Gram = tuple[str, ...]

LONGEST = 4  # n-grams of 1 to 4 words
SPREAD = 6.0  # CIDEr-D's Gaussian: how much lengths may differ
BETA = 1.2  # ROUGE-L: how much recall counts beside precision


@dataclass(frozen=True)
class CaptionScores:
    """BLEU and ROUGE-L in [0, 1], CIDEr-D in [0, 10]; `each`: the CIDEr-D of every picture, whose mean it is."""

    bleu: tuple[float, float, float, float]  # with n-grams of up to 1, 2, 3, 4 words
    rouge_l: float
    cider_d: float
    each: list[float]


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """The scores of texts as people write them, a candidate and any number of references a picture.

    Raises ValueError where a picture has no reference, or there is no picture.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(
            f"{len(candidates)} captions with {len(references)} lists of references: each needs one of its own"
        )
    said = [caption_words(text) for text in candidates]
    true = [[caption_words(text) for text in texts] for texts in references]
    each = cider_d(said, true)
    rouge = sum(map(rouge_l, said, true)) / len(said)
    return CaptionScores(bleu(said, true), rouge, sum(each) / len(each), each)


def grams(words: Words, longest: int = LONGEST) -> Counter[Gram]:
    """How often each n-gram of up to `longest` words comes."""
    return Counter(tuple(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a corpus: the geometric mean of the n-grams' precisions, each counted at most as often as in one
    reference, times the penalty of candidates that are shorter than the reference of the nearest length (Papineni et al.,
    ACL 2002, section 2).
    """
    right, tried, length, wanted = [0] * LONGEST, [0] * LONGEST, 0, 0
    for words, others in zip(candidates, references, strict=True):
        known: Counter[Gram] = Counter()
        for other in others:
            known |= grams(other)
        for gram, count in (grams(words) & known).items():
            right[len(gram) - 1] += count
        for n in range(LONGEST):
            tried[n] += max(0, len(words) - n)
        length += len(words)
        wanted += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    ratio = (length + 1e-15) / (wanted + 1e-9)  # small numbers as in the official script, which divides by them
    brevity = math.exp(min(0.0, 1 - 1 / ratio))
    product, found = 1.0, []
    for n in range(LONGEST):
        product *= (right[n] + 1e-15) / (tried[n] + 1e-9)
        found.append(brevity * product ** (1 / (n + 1)))
    return found[0], found[1], found[2], found[3]


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """The longest common subsequence as F-measure: its share of the candidate and of a reference, each the best of all
    references (Lin 2004, section 3.1; the best of both need not be of one reference, as in the official script).
    """
    candidate = candidate or ("",)  # the official script takes no words for one empty word
    common = [(_common(candidate, other or ("",)), len(other or ("",))) for other in references]
    precision = max(length / len(candidate) for length, _ in common)
    recall = max(length / size for length, size in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for j, theirs in enumerate(other):
            row.append(before[j] + 1 if word == theirs else max(before[j + 1], row[j]))
    return row[-1]


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of every picture: ten times the cosine of n-grams weighted by how rare they are among the pictures, each at
    most as heavy as in the reference, with a penalty of other lengths; the mean over n and references (Vedantam et al.,
    CVPR 2015, section 6).

    Differs: as the official script, lengths are counted in pairs of words. With one picture all is 0: nothing is rare.
    """
    counted = [[grams(words) for words in others] for others in references]
    pictures: Counter[Gram] = Counter(gram for others in counted for gram in set().union(*others))
    rare = _Rareness(pictures, len(counted))
    found = []
    for words, others in zip(candidates, counted, strict=True):
        said = rare.weighted(grams(words))
        found.append(10 * sum(_alike(said, rare.weighted(other)) for other in others) / (LONGEST * len(others)))
    return found


@dataclass(frozen=True)
class _Weighted:
    """An n-gram's count times its rareness, by n; the norms; and how many pairs of words there are."""

    grams: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    pairs: int


@dataclass(frozen=True)
class _Rareness:
    pictures: Counter[Gram]  # that have an n-gram in a reference
    number: int

    def weighted(self, counts: Counter[Gram]) -> _Weighted:
        by_length: tuple[dict[Gram, float], ...] = tuple({} for _ in range(LONGEST))
        for gram, count in counts.items():
            by_length[len(gram) - 1][gram] = count * (math.log(self.number) - math.log(max(1, self.pictures[gram])))
        pairs = sum(count for gram, count in counts.items() if len(gram) == 2)
        return _Weighted(by_length, tuple(_norm(part.values()) for part in by_length), pairs)


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def _alike(said: _Weighted, true: _Weighted) -> float:
    """Summed over n."""
    total = 0.0
    for ours, theirs, mine, its in zip(said.grams, true.grams, said.norms, true.norms, strict=True):
        if mine and its:
            common = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
            total += common / (mine * its)
    return total * math.exp(-((said.pairs - true.pairs) ** 2) / (2 * SPREAD**2))
