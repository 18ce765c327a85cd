import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.metrics.recall import chance, recall, resampled_recalls


def by_hand(scores, owner, k):
    """The definition, one query at a time: sort with wrong candidates first among ties, look at the first k."""

    def hits(row, right):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j in right))
        return bool(set(order[:k]) & right)

    images, texts = range(len(scores)), range(len(owner))
    i2t = [hits(scores[i], {t for t in texts if owner[t] == i}) for i in images]
    t2i = [hits([scores[i][t] for i in images], {owner[t]}) for t in texts]
    return sum(i2t) / len(i2t), sum(t2i) / len(t2i)


@st.composite
def galleries(draw):
    images = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, images - 1), max_size=8))
    owner = draw(st.permutations([*range(images), *extra]))
    few = st.integers(-2, 2)  # few values, so that ties are common
    scores = draw(st.lists(st.lists(few, min_size=len(owner), max_size=len(owner)), min_size=images, max_size=images))
    return scores, owner


@settings(max_examples=150, deadline=None)
@given(galleries(), st.integers(1, 12))
@pytest.mark.slow
def test_equals_the_definition(gallery, k):
    scores, owner = gallery
    result = recall(torch.tensor(scores, dtype=torch.float), torch.tensor(owner), (k,))
    i2t, t2i = by_hand(scores, owner, k)
    assert result.image_to_text[k] == pytest.approx(i2t)
    assert result.text_to_image[k] == pytest.approx(t2i)
    assert (result.images, result.texts) == (len(scores), len(owner))


def test_worked_example():
    # Two images, two captions each. Image 0 ranks its own caption first; image 1 ranks a wrong one above both.
    scores = torch.tensor([[3.0, 0.0, 1.0, 2.0], [0.0, 5.0, 4.0, 1.0]])
    result = recall(scores, torch.tensor([0, 0, 1, 1]), (1, 2))
    assert result.image_to_text == {1: 0.5, 2: 1.0}
    assert result.text_to_image == {1: 0.5, 2: 1.0}  # caption 0 and 2 find their image; 1 and 3 prefer the other
    assert result.chance_text_to_image == {1: 0.5, 2: 1.0}
    assert result.chance_image_to_text == {1: pytest.approx(0.5), 2: pytest.approx(5 / 6)}  # 1 - C(2,2)/C(4,2)


def test_chance_of_a_worked_example():
    blind = chance([1, 3], (1, 2, 9))
    assert blind.image_to_text == {1: pytest.approx((1 / 4 + 3 / 4) / 2), 2: pytest.approx((1 / 2 + 1) / 2), 9: 1.0}
    assert blind.text_to_image == {1: 0.5, 2: 1.0, 9: 1.0}


def test_constant_scores_give_zero_recall():
    result = recall(torch.zeros(20, 20), torch.arange(20))
    assert set(result.image_to_text.values()) == set(result.text_to_image.values()) == {0.0}


def test_chance_equals_the_recall_of_random_scores():
    owner = torch.arange(20).repeat_interleave(3)
    results = [recall(torch.rand(20, 60, generator=torch.Generator().manual_seed(s)), owner) for s in range(200)]
    for k in (1, 5, 10):
        mean = sum(r.image_to_text[k] for r in results) / len(results)
        assert mean == pytest.approx(results[0].chance_image_to_text[k], abs=0.03)


@pytest.mark.parametrize(
    ("scores", "owner", "message"),
    [
        (torch.full((1, 1), float("nan")), [0], "NaN"),
        (torch.zeros(2, 1), [0], "image 1 has no text"),
        (torch.zeros(2, 2), [0, 2], "owner must give the index"),
    ],
)
def test_invalid_scores_raise_an_error(scores, owner, message):
    with pytest.raises(ValueError, match=message):
        recall(scores, torch.tensor(owner))


@settings(max_examples=60, deadline=None)
@given(galleries(), st.data())
def test_resampled_recalls_are_those_of_the_queries_drawn_against_the_whole_gallery(gallery, data):
    scores, owner = torch.tensor(gallery[0], dtype=torch.float32), torch.tensor(gallery[1])
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores)).filter(any))
    recalls = recall(scores, owner)
    values = resampled_recalls(owner, {"": recalls, ", before": recalls}).metrics(np.array([counts]))
    images = [i for i, n in enumerate(counts) for _ in range(n)]
    texts = [t for i in images for t, of in enumerate(owner.tolist()) if of == i]
    for k in (1, 5, 10):
        to_text = np.mean([by_hand_hits(scores[i], {t for t, of in enumerate(owner) if of == i}, k) for i in images])
        to_image = np.mean([by_hand_hits(scores[:, t], {int(owner[t])}, k) for t in texts])
        for suffix in ("", ", before"):
            assert values[f"image to text R@{k}{suffix}"] == pytest.approx(to_text)
            assert values[f"text to image R@{k}{suffix}"] == pytest.approx(to_image)


def by_hand_hits(row, right, k):
    """Whether a right candidate is among the first k, with wrong ones first among ties."""
    order = sorted(range(len(row)), key=lambda j: (-float(row[j]), j in right))
    return bool(set(order[:k]) & right)
