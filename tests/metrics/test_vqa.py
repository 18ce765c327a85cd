import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.answers import soft_scores
from diptych.metrics.vqa import normalise_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("a man and an umbrella", "man and umbrella"),
        ("black-and-white", "black and white"),  # a mark inside a word becomes a space
        ("black - white", "black white"),  # a loose one goes
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a comma between digits drops every mark
        ("3.5", "3.5"),
        ("3.5 m.", "3.5 m"),
        ("u.s.a.", "usa"),
        ("10:30", "10:30"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("don't", "don't"),
        ("well", "well"),
        ("somebody'd", "somebodyd"),  # as the official table has it
        ("  red\n", "red"),
        ("it's\tred", "it's red"),
        ("x -y-z", "x yz"),  # loose once, a mark is dropped everywhere
        ("x\xa0-y-z", "x y z"),  # only a plain space, a tab or a new line makes it loose
        ("." * 33, "."),  # the official script drops 32 points at most
        ("howd", "how'd"),
        ("whove", "who've"),
        ("Im", "im"),  # the official table has it in capitals, which no answer still has by then
        ("twas", "'twas"),
        ("10 a.m.", "10 am"),
        (".5", ".5"),
        ("$5", "$5"),
        ("a", ""),
    ],
)
def test_normalisation(answer, normal):
    assert normalise_answer(answer) == normal


@pytest.mark.parametrize(("count", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators(count, score):
    people = ["yes"] * count + ["no"] * (10 - count)
    assert vqa_accuracy("yes", people) == pytest.approx(score)


def test_a_single_answer_is_plain_equality():
    assert vqa_accuracy("The chair", ["chair"]) == 1.0
    assert vqa_accuracy("table", ["chair"]) == 0.0


def test_both_sides_are_normalised_where_people_differ():
    assert vqa_accuracy("Two.", ["two"] * 9 + ["2"]) == 1.0
    assert vqa_accuracy("the cat", ["cat.", "a cat"] * 5) == 1.0


def test_what_all_wrote_alike_is_compared_as_written():
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy(" two\n", ["two", "two "] * 5) == 1.0


def test_withheld_answers_cannot_be_scored():
    with pytest.raises(ValueError, match="withheld"):
        vqa_accuracy("yes", [])


@given(st.text(max_size=30))
def test_normalising_gives_single_spaced_words_without_articles(answer):
    words = normalise_answer(answer).split(" ")
    assert not {"a", "an", "the"} & set(words)
    assert words == [""] or all(words)


@given(st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=10, max_size=10))
def test_more_votes_never_score_less(people):
    ranked = sorted({"yes", "no", "maybe"}, key=people.count)
    scores = [vqa_accuracy(a, people) for a in ranked]
    assert scores == pytest.approx(sorted(scores))
    targets = soft_scores(people, normalise_answer)  # what training aims at is what scoring measures
    assert scores == pytest.approx([targets.get(answer, 0.0) for answer in ranked])
