"""Caption metrics BLEU, ROUGE-L and CIDEr-D, and the tokenization of captions that they are defined on, in pure Python.

Equal to COCO's official scripts (pycocoevalcap 1.2), their errors included, since published scores were computed with
them. The metrics take words (see `caption_words`): one candidate and its references per image.
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
    """The words of a caption in lower case, by the rules of the Penn Treebank, without most punctuation.

    Clitics ('s, n't, 're) are words of their own; hyphenated words, numbers and abbreviations stay whole; quotes, full
    stops, commas, colons, semicolons, dashes, question and exclamation marks are dropped.

    Brackets stay as words ("-lrb-"): the official scripts drop only upper-case ones, and published scores have
    them.
    Differs: those scripts call a Java program, Stanford's PTBTokenizer 3.4.1, which has more abbreviations, and splits
    addresses and emoticons by rules of its own. Of Flickr8k's 35,000 captions of train and val 3 are split differently
    here.
    """
    text = _TWO_WORDS.sub(lambda m: " ".join(part for part in m.groups() if part), caption.translate(_ALIKE).lower())
    words: list[str] = [_BRACKETS.get(word) or word for word in _WORD.findall(_NOT.sub(" n't", text))]
    return [word for word in words if word not in _DROPPED and set(word) not in ({"."}, {"-"})]


Words = Sequence[str]
Gram = tuple[str, ...]

LONGEST = 4  # n-grams of 1 to 4 words
SPREAD = 6.0  # standard deviation of CIDEr-D's Gaussian length penalty
BETA = 1.2  # weight of recall in ROUGE-L's F-measure


@dataclass(frozen=True)
class CaptionScores:
    """BLEU and ROUGE-L in [0, 1], CIDEr-D in [0, 10]; `each`: the CIDEr-D of each image, whose mean is `cider_d`."""

    bleu: tuple[float, float, float, float]  # with n-grams of up to 1, 2, 3, 4 words
    rouge_l: float
    cider_d: float
    each: list[float]


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """All metrics of untokenized captions: one candidate and any number of references per image.

    Raises ValueError for an image without references, and for no images.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(
            f"expected a non-empty list of references for each caption, got {len(candidates)} captions and "
            f"{len(references)} lists of references, {sum(map(bool, references))} of them non-empty"
        )
    words = [caption_words(text) for text in candidates]
    reference_words = [[caption_words(text) for text in texts] for texts in references]
    each = cider_d(words, reference_words)
    rouge = sum(map(rouge_l, words, reference_words)) / len(words)
    return CaptionScores(bleu(words, reference_words), rouge, sum(each) / len(each), each)


def grams(words: Words, longest: int = LONGEST) -> Counter[Gram]:
    """The counts of all n-grams of up to `longest` words."""
    return Counter(tuple(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 of a corpus: the geometric mean of clipped n-gram precisions, times the brevity penalty.

    The reference length is that of the reference nearest in length. Source: Papineni et al., ACL 2002, section 2.
    """
    counts = [bleu_statistics(words, others) for words, others in zip(candidates, references, strict=True)]
    return bleu_of_counts([sum(column) for column in zip(*counts, strict=True)])


def bleu_statistics(words: Words, references: Sequence[Words]) -> list[int]:
    """What an image adds to the counts that BLEU is computed from.

    For n from 1 to 4 the matching n-grams, then for each n all n-grams, then the lengths of caption and reference.
    """
    matches, reference_grams = [0] * LONGEST, Counter[Gram]()
    for other in references:
        reference_grams |= grams(other)
    for gram, count in (grams(words) & reference_grams).items():
        matches[len(gram) - 1] += count
    totals = [max(0, len(words) - n) for n in range(LONGEST)]
    reference_length = min((abs(len(other) - len(words)), len(other)) for other in references)[1]
    return [*matches, *totals, len(words), reference_length]


def bleu_of_counts(counts: Sequence[int]) -> tuple[float, float, float, float]:
    """BLEU-1 to BLEU-4 from the sums of `bleu_statistics` over a corpus."""
    matches, totals, (length, reference_length) = counts[:LONGEST], counts[LONGEST : 2 * LONGEST], counts[-2:]
    ratio = (length + 1e-15) / (reference_length + 1e-9)  # small numbers as in the official script
    brevity = math.exp(min(0.0, 1 - 1 / ratio))
    product, scores = 1.0, []
    for n in range(LONGEST):
        product *= (matches[n] + 1e-15) / (totals[n] + 1e-9)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores[0], scores[1], scores[2], scores[3]


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence of candidate and reference.

    Precision and recall are each the best over all references, not necessarily the same one, as in the official script.
    Source: Lin 2004, section 3.1.
    """
    candidate = candidate or ("",)  # the official script treats an empty caption as one empty word
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
    """CIDEr-D of each image: ten times the cosine of clipped TF-IDF n-gram vectors, with a Gaussian length penalty.

    The mean over n and references. Document frequencies are those of the references' images; with one image all scores
    are 0. Source: Vedantam et al., CVPR 2015, section 6. Differs: as in the official script, lengths are counted in
    bigrams.
    """
    reference_grams = [[grams(words) for words in others] for others in references]
    frequency: Counter[Gram] = Counter(gram for others in reference_grams for gram in set().union(*others))
    idf = _InverseFrequency(frequency, len(reference_grams))
    scores = []
    for words, others in zip(candidates, reference_grams, strict=True):
        vector = idf.weighted(grams(words))
        total = sum(_similarity(vector, idf.weighted(other)) for other in others)
        scores.append(10 * total / (LONGEST * len(others)))
    return scores


@dataclass(frozen=True)
class _Weighted:
    """TF-IDF weights of n-grams, by n; their norms; and the number of bigrams."""

    grams: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    pairs: int


@dataclass(frozen=True)
class _InverseFrequency:
    frequency: Counter[Gram]  # number of images with the n-gram in a reference
    num_images: int

    def weighted(self, counts: Counter[Gram]) -> _Weighted:
        by_length: tuple[dict[Gram, float], ...] = tuple({} for _ in range(LONGEST))
        for gram, count in counts.items():
            by_length[len(gram) - 1][gram] = count * (
                math.log(self.num_images) - math.log(max(1, self.frequency[gram]))
            )
        pairs = sum(count for gram, count in counts.items() if len(gram) == 2)
        return _Weighted(by_length, tuple(_norm(part.values()) for part in by_length), pairs)


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """The clipped cosine with length penalty, summed over n."""
    total = 0.0
    for a, b, a_norm, b_norm in zip(candidate.grams, reference.grams, candidate.norms, reference.norms, strict=True):
        if a_norm and b_norm:
            total += sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b) / (a_norm * b_norm)
    return total * math.exp(-((candidate.pairs - reference.pairs) ** 2) / (2 * SPREAD**2))
