"""Random choices of objectives, keyed by sample: BERT's masking and ViLT's sampling of patches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diptych.batch import Batch, Text
from diptych.modules.tokens import Span, Tokens
from diptych.objectives.random_choices import FixedChoices, KeyedChoices, MaskedText, WordMasking

MASKING = WordMasking(vocab_size=5000, mask_id=4)
PIECES = WordMasking(vocab_size=5000, mask_id=4, whole_words=False)


def text_of(words: list[list[int]], dim: int | None = None) -> Text:
    """Texts from their words' lengths in tokens: [CLS] 1, [SEP] 2, padding 0, every other token its own id."""
    n = max(2 + sum(w) for w in words) if dim is None else dim
    ids, begins = torch.zeros(len(words), n, dtype=torch.long), torch.zeros(len(words), n, dtype=torch.bool)
    for row, lengths in enumerate(words):
        total = sum(lengths)
        ids[row, : total + 2] = torch.tensor([1, *range(1000, 1000 + total), 2])
        at = 1
        for length in lengths:
            begins[row, at] = True
            at += length
    return Text(ids, ids > 0, begins)


def drawn(text: Text, masking: WordMasking, step: int = 0, ids: Tensor | None = None) -> MaskedText:
    names = torch.arange(len(text)) if ids is None else ids
    return KeyedChoices(Batch(seed=1, step=step, ids=names, text=text)).mask_text(text, masking)


caption = st.lists(st.integers(1, 4), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(words=st.lists(caption, min_size=1, max_size=4), whole=st.booleans(), step=st.integers(0, 5))
@pytest.mark.slow
def test_masked_tokens_are_few_never_special_and_at_least_one(words: list[list[int]], whole: bool, step: int):
    text = text_of(words)
    masked = drawn(text, MASKING if whole else PIECES, step)
    assert (text.ids[masked.masked] >= 1000).all(), "[CLS], [SEP] or padding was masked"
    assert torch.equal(masked.original, text.ids)
    assert torch.equal(masked.text.ids[~masked.masked], text.ids[~masked.masked])
    assert torch.equal(masked.text.mask, text.mask)
    for row, lengths in enumerate(words):
        count = int(masked.masked[row].sum())
        budget = max(1, round(0.15 * (2 + sum(lengths))))
        assert 1 <= count <= max(budget, min(lengths) if whole else 1)
        if whole:
            pieces = masked.masked[row, 1 : 1 + sum(lengths)].split(lengths)
            assert all(word.all() or not word.any() for word in pieces), "a word was masked in part"


def many(n: int = 4000) -> Text:
    """Captions of 18 tokens, of which 3 (15 % of 20) are masked."""
    return text_of([[1] * 18] * n)


@pytest.mark.quick("masking0")
@pytest.mark.parametrize("masking", [MASKING, PIECES])
@pytest.mark.slow
def test_a_fifth_of_chosen_tokens_is_not_replaced_by_mask(masking: WordMasking):
    masked = drawn(many(), masking)
    hidden, ids = masked.masked, masked.text.ids
    assert hidden.sum(1).tolist() == [3] * len(hidden)
    total = hidden.sum().item()
    as_mask = (ids[hidden] == 4).sum().item() / total
    same = (ids[hidden] == masked.original[hidden]).sum().item() / total
    assert as_mask == pytest.approx(0.8, abs=0.015)
    assert same == pytest.approx(0.1, abs=0.012)
    random = ids[hidden][(ids[hidden] != 4) & (ids[hidden] != masked.original[hidden])]
    assert len(random) / total == pytest.approx(0.1, abs=0.012)
    assert random.float().mean().item() == pytest.approx(2500, rel=0.05), "any token may be drawn"
    by_position = hidden.float().mean(0)[1:19]
    assert (by_position - 3 / 18).abs().max() < 0.025, "every position is equally likely"


@pytest.mark.quick("True")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.slow
def test_with_ends_the_end_token_is_masked_as_often_as_a_word(whole: bool):
    hidden = drawn(many(), WordMasking(5000, 4, whole_words=whole, ends=True)).masked
    assert hidden.sum(1).tolist() == [3] * len(hidden) and not hidden[:, 0].any()
    assert (hidden.float().mean(0)[1:20] - 3 / 19).abs().max() < 0.025


def test_masks_change_with_the_step_and_the_sample():
    text = many(2)
    masks = [drawn(text, MASKING, step).masked for step in range(6)]
    assert len({tuple(mask[0].tolist()) for mask in masks}) > 3
    assert any(not torch.equal(mask[0], mask[1]) for mask in masks)


@settings(max_examples=30, deadline=None)
@given(words=st.lists(caption, min_size=2, max_size=5), more=st.integers(0, 5), whole=st.booleans())
def test_a_mask_does_not_depend_on_the_batch(words: list[list[int]], more: int, whole: bool):
    masking = MASKING if whole else PIECES
    batched = drawn(text_of(words), masking, ids=torch.arange(10, 10 + len(words)))
    last = len(words) - 1
    single = drawn(text_of(words[last:], 2 + sum(words[last]) + more), masking, ids=torch.tensor([10 + last]))
    n = 2 + sum(words[last])
    assert torch.equal(single.masked[0, :n], batched.masked[last, :n])
    assert torch.equal(single.text.ids[0, :n], batched.text.ids[last, :n])


def test_a_text_without_words_gets_no_mask():
    assert not drawn(text_of([[], [1, 1]]), MASKING).masked[0].any()


def test_without_word_starts_tokens_are_masked_independently():
    text = text_of([[2] * 9] * 50)
    unknown = Text(text.ids, text.mask)
    hidden = drawn(unknown, MASKING).masked
    assert hidden.sum(1).tolist() == [3] * 50
    assert torch.equal(hidden, drawn(text, PIECES).masked)


# -- patches ----------------------------------------------------------------------------------------------------------


def patches(extents: list[tuple[int, int]], canvas: tuple[int, int]) -> Tokens:
    """A class token and patches; each patch's value is its raster index in its own image."""
    rows, columns = canvas
    r, c = torch.arange(rows)[:, None], torch.arange(columns)
    real = torch.stack([(r < h) & (c < w) for h, w in extents]).flatten(1)
    value = torch.stack([r * w + c for _, w in extents]).flatten(1)
    spans = Span("image", "cls", 1), Span("image", "patches", rows * columns, canvas)
    one = torch.ones(len(extents), 1)
    return Tokens.from_padded(torch.cat([-one, value.float()], 1)[:, :, None], torch.cat([one > 0, real], 1), *spans)


def kept(tokens: Tokens, most: int, ids: list[int], step: int = 0) -> list[list[int]]:
    keep = KeyedChoices(Batch(seed=1, step=step, ids=torch.tensor(ids))).keep_patches(tokens, most)
    assert not (keep & ~tokens.mask).any()
    return [row[k].flatten().int().tolist() for row, k in zip(tokens.values, keep, strict=True)]


def test_the_given_number_of_patches_and_the_class_token_are_kept():
    indices = kept(patches([(3, 4), (2, 2), (1, 4)], (3, 4)), 5, [0, 1, 2])
    assert [len(x) for x in indices] == [1 + 5, 1 + 4, 1 + 4]
    assert all(x[0] == -1 for x in indices)


def test_kept_patches_do_not_depend_on_padding_or_the_batch():
    single = kept(patches([(2, 3)], (2, 3)), 3, [7])[0]
    assert kept(patches([(5, 4), (2, 3)], (5, 4)), 3, [3, 7])[1] == single
    assert kept(patches([(2, 3), (1, 9)], (2, 9)), 3, [7, 2])[0] == single


def test_every_patch_is_as_likely_to_be_kept():
    n, most = 3000, 4
    indices = kept(patches([(3, 4)] * n, (3, 4)), most, list(range(n)))
    counts = torch.bincount(torch.tensor(indices)[:, 1:].flatten(), minlength=12) / n
    assert (counts - most / 12).abs().max() < 0.035
    assert kept(patches([(3, 4)], (3, 4)), most, [0], step=1) != indices[:1]


# -- fixed choices --------------------------------------------------------------------------------------------------


def test_fixed_choices_are_used_unchanged():
    text, tokens = text_of([[1, 1]]), patches([(1, 2)], (1, 2))
    masked, keep = drawn(text, MASKING), torch.tensor([[True, False, True]])
    assert FixedChoices(masked).mask_text(text, MASKING) is masked
    assert FixedChoices(kept_patches=keep).keep_patches(tokens, 1) is keep
    with pytest.raises(ValueError, match="FixedChoices has no masked_text"):
        FixedChoices().mask_text(text, MASKING)
    with pytest.raises(ValueError, match="FixedChoices has no kept_patches"):
        FixedChoices().keep_patches(tokens, 1)
