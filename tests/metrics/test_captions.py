"""BLEU, ROUGE-L and CIDEr-D: equal to the official scorers and to hand-computed values."""

from __future__ import annotations

import math
import random

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from diptych.metrics.captions import bleu, caption_scores, caption_words, cider_d, rouge_l

WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "runs",
    "sits",
    "on",
    "in",
    "grass",
    "snow",
    "with",
    "red",
    "blue",
    "ball",
    "two",
    "children",
]


def drawn(seed: int, num_images: int, most: int = 5) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Captions from a small vocabulary, so that they overlap; some empty or repeated."""
    random_ = random.Random(seed)

    def text(least: int) -> list[str]:
        return random_.choices(WORDS, k=random_.randint(least, 14))

    references = [[text(1) for _ in range(random_.randint(1, most))] for _ in range(num_images)]
    candidates = [random_.choice([text(0), random_.choice(others), text(0)[:3]]) for others in references]
    return candidates, references


def official(candidates: list[list[str]], references: list[list[list[str]]]) -> tuple[list[float], float, list[float]]:
    gts = {i: [" ".join(text) for text in texts] for i, texts in enumerate(references)}
    res = {i: [" ".join(text)] for i, text in enumerate(candidates)}
    return (
        Bleu(4).compute_score(gts, res, verbose=0)[0],
        float(Rouge().compute_score(gts, res)[0]),
        [float(x) for x in Cider().compute_score(gts, res)[1]],
    )


@pytest.mark.parametrize(("seed", "num_images", "most"), [(0, 40, 5), (1, 7, 1), (2, 200, 3), (3, 2, 5)])
def test_equal_to_the_official_scorers(seed: int, num_images: int, most: int):
    candidates, references = drawn(seed, num_images, most)
    blue, rouge, cider = official(candidates, references)
    assert bleu(candidates, references) == pytest.approx(blue, rel=0, abs=1e-6)
    assert sum(map(rouge_l, candidates, references)) / num_images == pytest.approx(rouge, rel=0, abs=1e-6)
    assert cider_d(candidates, references) == pytest.approx(cider, rel=0, abs=1e-6)
    assert max(cider) > 0.1 and rouge > 0.1  # not all scores are zero


def test_raw_captions_are_tokenized_first():
    candidates = ["A dog's ball.", "Two cats (black) sit!", "it isn't here"]
    references = [["The dog's red ball", "A ball ..."], ["two cats sit, black", "Cats."], ["It is not here"]]
    scores = caption_scores(candidates, references)
    words = [caption_words(text) for text in candidates], [[caption_words(t) for t in texts] for texts in references]
    blue, rouge, cider = official(*words)
    assert scores.bleu == pytest.approx(blue) and scores.rouge_l == pytest.approx(rouge)
    assert scores.each == pytest.approx(cider) and scores.cider_d == pytest.approx(sum(cider) / 3)


def test_worked_example():
    candidate, true = ["a", "red", "ball"], [["a", "blue", "ball", "rolls"]]
    assert bleu([candidate], [true])[0] == pytest.approx(2 / 3 * math.exp(1 - 4 / 3))
    precision, recall = 2 / 3, 2 / 4
    assert rouge_l(candidate, true) == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    # two images without common words: a candidate equal to its one reference, of 3 words, has cosine 1 for n = 1, 2, 3
    assert cider_d([candidate, ["x"]], [[candidate], [["y"]]]) == pytest.approx([10 * 3 / 4, 0])


def test_an_exact_match_scores_best_and_no_overlap_zero():
    texts = [["a dog runs on the grass"], ["two children play with a ball"], ["a woman sits in the red snow"]]
    best = caption_scores([one for (one,) in texts], texts)
    assert best.bleu == pytest.approx((1, 1, 1, 1)) and best.rouge_l == pytest.approx(1)
    assert best.cider_d == pytest.approx(10)
    worst = caption_scores(["xx yy zz"] * 3, texts)
    assert max(*worst.bleu, worst.rouge_l, worst.cider_d) < 1e-3


def test_words_equal_those_of_stanfords_tokenizer():
    """Expected words: PTBTokenizer 3.4.1 -lowerCase, without the official list of punctuation."""
    for text, words in [
        ("A dog doesn't run; it can't, won't and isn't.", "a dog does n't run it ca n't wo n't and is n't"),
        ("The man's dog (a big one) sits.", "the man 's dog -lrb- a big one -rrb- sits"),
        ('He said: "hello there", and \'goodbye\'.', "he said hello there and goodbye"),
        ("I'm sure they're here and we've seen it, she'd go", "i 'm sure they 're here and we 've seen it she 'd go"),
        ("a 3-year-old boy at 10:30 with $5.00 and 1,000 people", "a 3-year-old boy at 10:30 with $ 5.00 and 1,000 people"),
        ("Mr. Smith's U.S. flag -- a cannot gonna", "mr. smith 's u.s. flag a can not gon na"),
        ("black & white wheel/tire, 50% off #1 ... five o'clock", "black & white wheel/tire 50 % off # 1 five o'clock"),
    ]:  # fmt: skip
        assert caption_words(text) == words.split()
    assert caption_words(" . ") == []


def test_captions_without_references_raise_an_error():
    for candidates, references in ([], []), (["a"], [[]]), (["a", "b"], [["a"]]):
        with pytest.raises(ValueError, match="references"):
            caption_scores(candidates, references)
