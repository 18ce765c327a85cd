from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Text
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, beam_search, greedy, sample, top_p_filter
from diptych.generation.beam_search import BeamSearch
from diptych.generation.decoding import IncrementalDecoder
from diptych.modules.frozen_text import FrozenTextEmbedding
from diptych.modules.tokens import packing
from diptych.protocols import TextDecoder

from .toy import END, PAD, Speaker, Table, context

RULES = GenerationConfig(END, PAD, max_length=8)


def prompt(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def logits(words: int, **likely: float) -> Tensor:
    """Logits that are zero unless set: `_2_3` is the logit of token 3 after token 2."""
    table = torch.zeros(words, words)
    for pair, value in likely.items():
        _, last, following = pair.split("_")
        table[int(last), int(following)] = value
    return table


def test_both_toy_models_are_text_decoders():
    assert isinstance(Speaker(), TextDecoder) and isinstance(Table(torch.zeros(3, 3)), TextDecoder)


def test_greedy_takes_the_most_likely_tokens_until_the_end_token():
    model = Table(logits(5, _2_3=2, _3_4=2, _4_1=2, _1_2=9))
    ids = greedy(model, context(2), prompt([2], [4]), RULES)
    assert ids.tolist() == [[2, 3, 4, END], [4, END, PAD, PAD]]
    short = GenerationConfig(END, PAD, max_length=3)
    assert greedy(model, context(1), prompt([2]), short).tolist() == [[2, 3, 4]]


def test_no_end_token_before_the_minimum_length():
    model = Table(logits(5, _4_1=2, _4_3=1, _3_4=1))
    rules = GenerationConfig(END, PAD, max_length=8, min_length=3)
    assert greedy(model, context(1), prompt([4]), rules).tolist() == [[4, 3, 4, END]]


def test_the_repetition_penalty_lowers_positive_and_negative_scores():
    scores = torch.tensor([[4.0, -4.0, 1.0, -1.0]])
    constrained = GenerationConfig(END, PAD, 8, repetition_penalty=2.0).constrain(prompt([0, 1, 1]), scores)
    assert constrained.tolist() == [[2.0, -8.0, 1.0, -1.0]]
    assert scores.tolist() == [[4.0, -4.0, 1.0, -1.0]]


def test_the_nucleus_is_the_smallest_set_with_probability_top_p():
    scores = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert top_p_filter(scores, 0.5, 4).isfinite().tolist() == [[False, True, False, False]]
    assert top_p_filter(scores, 0.6, 4).isfinite().tolist() == [[False, True, False, True]]
    assert top_p_filter(scores, 1.0, 3).isfinite().tolist() == [[False, True, True, True]]  # among the three best


def test_samples_follow_the_probabilities_and_the_draws():
    model = Table(torch.tensor([0.0, 0.5, 0.3, 0.15, 0.05]).log().expand(5, -1))
    rules = GenerationConfig(4, PAD, max_length=2)

    n = 1000

    def drawn(seed: int, share: float) -> Tensor:
        draws = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))
        return sample(model, context(n), torch.full((n, 1), 2), rules, draws, share)[:, 1]

    assert torch.equal(drawn(1, 0.9), drawn(1, 0.9))
    assert not torch.equal(drawn(1, 0.9), drawn(2, 0.9))
    frequency = drawn(0, 0.9).bincount(minlength=5) / n
    torch.testing.assert_close(frequency, torch.tensor([0, 0.5, 0.3, 0.15, 0]) / 0.95, atol=0.05, rtol=0)


WORDS = 6


def best_of_all(model: Speaker, start: int, rules: GenerationConfig, i: int, power: float) -> tuple[list[int], float]:
    """The best of all possible texts, by enumeration."""
    sample_context = context(2).index_samples(torch.tensor([i]))
    candidates = []
    for n in range(1, rules.max_length):
        for text in product(range(WORDS), repeat=n):
            if END in text[:-1] or (n < rules.max_length - 1 and text[-1] != END):
                continue
            candidates.append((start, *text))
    scores = {}
    with torch.no_grad():
        for n in {len(text) for text in candidates}:
            texts = torch.tensor([text for text in candidates if len(text) == n])
            read = Text(texts, torch.ones_like(texts, dtype=torch.bool))
            logits = model.next_token_logits(
                read, sample_context.index_samples(torch.zeros(len(texts), dtype=torch.long))
            ).log_softmax(-1)
            total = logits[:, :-1].gather(2, texts[:, 1:, None]).sum((1, 2))
            lengths = n - (texts[:, -1] == END).long()
            scores |= dict(zip(map(tuple, texts.tolist()), (total / lengths**power).tolist(), strict=True))
    best = max(scores, key=lambda text: scores[text])
    return list(best), scores[best]


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_enough_beams_give_the_best_text(power: float):
    model, rules = Speaker(WORDS).eval(), GenerationConfig(END, PAD, max_length=4)
    written = beam_search(model, context(2), prompt([5], [3]), rules, BeamConfig(WORDS**2, length_penalty=power))
    for i, start in enumerate((5, 3)):
        text, score = best_of_all(model, start, rules, i, power)
        assert written.ids[i, : len(text)].tolist() == text
        assert (written.ids[i, len(text) :] == PAD).all()
        assert written.scores[i].item() == pytest.approx(score, rel=1e-5)


def test_beam_search_finds_a_better_text_than_greedy():
    """2 → 3 is likelier than 2 → 4, but after 3 all tokens are equally likely, and after 4 the end is certain."""
    model = Table(logits(6, _2_3=5, _2_4=4.9, _4_1=9))
    rules = GenerationConfig(END, PAD, max_length=3)
    assert greedy(model, context(1), prompt([2]), rules)[0, 1] == 3
    assert beam_search(model, context(1), prompt([2]), rules, BeamConfig(2)).ids.tolist() == [[2, 4, END]]


def score_of(beams: BeamConfig) -> GenerationOutput:
    table = torch.tensor([0.0, 0.4, 0.0, 0.6]).log().expand(4, -1).clone()
    table[3] = torch.tensor([0.0, 0.9, 0.0, 0.1]).log()
    return beam_search(Table(table), context(1), prompt([2]), GenerationConfig(END, PAD, max_length=5), beams)


def test_scores_are_sums_over_lengths():
    """[2, 3] ends with probability 0.6 · 0.9, and [2] with 0.4."""
    assert score_of(BeamConfig(2)).ids.tolist() == [[2, 3, END]]
    assert score_of(BeamConfig(2)).scores.item() == pytest.approx(math.log(0.54) / 2)
    assert score_of(BeamConfig(2, count_eos=True)).scores.item() == pytest.approx(math.log(0.54) / 3)
    assert score_of(BeamConfig(2, length_penalty=0.0)).scores.item() == pytest.approx(math.log(0.54))
    assert score_of(BeamConfig(2, length_penalty=-2.0)).ids.tolist() == [[2, END]]
    assert score_of(BeamConfig(2, score=torch.exp)).scores.item() == pytest.approx((0.6 + 0.9) / 2)


def test_early_stopping_ends_with_as_many_texts_as_beams():
    """Two texts have ended after two tokens; a longer one would score better."""
    table = torch.tensor([0.0, 0.51, 0.0, 0.49]).log().expand(4, -1).clone()
    table[3] = torch.tensor([0.0, 0.01, 0.0, 0.99]).log()
    rules = GenerationConfig(END, PAD, max_length=6)
    late, early = (
        beam_search(
            Table(table), context(1), prompt([2]), rules, BeamConfig(2, length_penalty=2.0, early_stopping=early)
        ).ids.tolist()
        for early in (False, True)
    )
    assert late == [[2, 3, 3, 3, 3, 3]]
    assert early == [[2, END]]


def test_groups_without_diversity_penalty_equal_one_search():
    model = Speaker().eval()
    start = prompt([5], [7], [3])
    one = beam_search(model, context(3), start, RULES, BeamConfig(2))
    three = beam_search(model, context(3), start, RULES, BeamConfig(6, num_beam_groups=3))
    assert torch.equal(one.ids, three.ids)
    torch.testing.assert_close(one.scores, three.scores)


def test_the_diversity_penalty_applies_to_tokens_of_earlier_groups():
    """Two groups of one beam: the first takes 3; the second, with a penalty on 3, takes 4 and scores better."""
    model = Table(logits(6, _2_3=5, _2_4=4.5, _4_1=9))
    rules = GenerationConfig(END, PAD, max_length=3)
    assert beam_search(model, context(1), prompt([2]), rules, BeamConfig(2, num_beam_groups=2)).ids[0, 1] == 3
    assert (
        beam_search(model, context(1), prompt([2]), rules, BeamConfig(2, num_beam_groups=2, diversity_penalty=0.2)).ids[
            0, 1
        ]
        == 3
    )
    assert (
        beam_search(model, context(1), prompt([2]), rules, BeamConfig(2, num_beam_groups=2, diversity_penalty=1.5)).ids[
            0, 1
        ]
        == 4
    )


def test_the_first_group_has_no_penalty_even_for_token_0():
    """Token 0 is best: the first group takes it, and the second is penalised for it."""
    model, config = Table(torch.tensor([[2.0, -9, -9, 1.9]] * 4)), GenerationConfig(END, 3, max_length=2)
    beams = BeamConfig(num_beams=2, num_beam_groups=2, diversity_penalty=1.0)
    output = beam_search(model, context(1), prompt([2]), config, beams)
    assert output.ids.tolist() == [[2, 0]]


def test_an_end_token_counts_only_among_the_best_beams():
    """Of the 2 · size continuations those beyond `size` replace beams that end, and may not end themselves."""
    search = BeamSearch(2, BeamConfig(num_beams=2), RULES)
    ids = prompt([2, 5], [2, 6])
    assert search.step(ids, [-1.0, -2.0, -3.0, -4.0], [END, 7, END, 8], [0, 1, 1, 0]) == ([-2.0, -4.0], [7, 8], [1, 0])
    assert [text.tolist() for _, text in search.finished] == [[2, 5]]


def test_a_draw_beyond_the_sum_of_probabilities_takes_the_last_token_of_the_nucleus():
    """Rounding may leave the sum of the probabilities below a draw."""
    model = Table(torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4).log_softmax(1))
    config = GenerationConfig(eos_token_id=9, pad_token_id=PAD, max_length=2)
    ids = sample(model, context(1), prompt([0]), config, torch.ones(1, 2), top_p=0.8)
    assert ids.tolist() == [[0, 1]], "tokens 0 and 1 have probability 0.88"


def test_beams_must_be_divisible_by_groups():
    with pytest.raises(ValueError, match="num_beams 5 is not divisible by num_beam_groups 2"):
        BeamConfig(5, num_beam_groups=2)


@pytest.mark.parametrize("packed", [False, True])
def test_decoding_with_a_cache_equals_decoding_without(packed: bool):
    """The same texts with and without a cache, with packed and padded context; each token is computed once."""
    model, start = Speaker().eval(), prompt([5, 6], [7, 2], [3, 3])
    with packing(packed):
        layout = context(3)
        results = []
        for use_cache in (True, False):
            model.columns = 0
            draws = torch.rand(3, RULES.max_length, generator=torch.Generator().manual_seed(0))
            beams = beam_search(
                model, layout, start, RULES, BeamConfig(4, num_beam_groups=2, diversity_penalty=0.3), use_cache
            )
            results.append((greedy(model, layout, start, RULES, use_cache), beams.ids))
            results[-1] += (sample(model, layout, start, RULES, draws, use_cache=use_cache),)
            results[-1] += (model.columns,)
    for a, b in zip(*(x[:3] for x in results), strict=True):
        assert torch.equal(a, b)
    assert results[0][3] < results[1][3]


def test_contextual_frozen_embeddings_get_the_prefix(monkeypatch: pytest.MonkeyPatch):
    """With a cache the model gets the newest tokens only; a contextual frozen encoder needs those before them too."""
    ids, table = prompt([5, 6, 9, 3], [7, 2, 4, 8]), nn.Embedding(11, 384)
    model = Speaker(word=FrozenTextEmbedding(8, lambda text, _=False: table(text.ids).cumsum(1), pad=-1)).eval()

    def read(use_cache: bool) -> Tensor:
        reader = IncrementalDecoder(model, context(2), use_cache)
        return torch.stack([reader.next_token_logits(ids[:, :n]) for n in (2, 3, 4)])

    with torch.no_grad():
        torch.testing.assert_close(read(use_cache=True), read(use_cache=False), rtol=1e-5, atol=2e-5)
        monkeypatch.setattr(FrozenTextEmbedding, "with_prefix", lambda *_: nullcontext())
        assert (read(use_cache=True) - read(use_cache=False)).abs().max() > 1e-4, "otherwise this test could not fail"


def test_a_samples_text_does_not_depend_on_the_batch():
    model, start = Speaker().eval(), prompt([5], [7], [3])
    batched = beam_search(model, context(3), start, RULES, BeamConfig(3))
    for i in range(3):
        single = beam_search(model, context(3).index_samples(torch.tensor([i])), start[i : i + 1], RULES, BeamConfig(3))
        assert batched.scores[i].item() == pytest.approx(single.scores.item(), rel=1e-5)
        n = single.ids.shape[1]
        assert torch.equal(batched.ids[i, :n], single.ids[0])
        assert (batched.ids[i, n:] == PAD).all()
    draws = torch.rand(3, RULES.max_length, generator=torch.Generator().manual_seed(0))
    sampled = sample(model, context(3), start, RULES, draws)
    for i in range(3):
        single = sample(model, context(3).index_samples(torch.tensor([i])), start[i : i + 1], RULES, draws[i : i + 1])
        assert torch.equal(sampled[i, : single.shape[1]], single[0])


@pytest.mark.parametrize("draw,token", [(0.0, 1), (0.499, 1), (0.501, 2), (0.799, 2), (0.801, 3), (0.99999, 3)])
def test_a_draw_selects_a_token_of_the_nucleus(draw: float, token: int):
    model = Table(torch.tensor([0.0, 0.5, 0.3, 0.2]).log().expand(5, -1))
    draws = torch.full((1, 2), draw)
    assert sample(model, context(1), prompt([2]), GenerationConfig(4, PAD, max_length=2), draws, 1.0)[0, 1] == token
