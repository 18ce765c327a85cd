import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.sources.answers import soft_scores
from diptych.metrics.vqa import AnswerList, best_accuracy, normalise_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("a man and an umbrella", "man and umbrella"),
        ("black-and-white", "black and white"),  # a mark inside a word becomes a space
        ("black - white", "black white"),  # a mark next to a space is dropped
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
        ("somebody'd", "somebodyd"),  # as in the official table
        ("  red\n", "red"),
        ("it's\tred", "it's red"),
        ("x -y-z", "x yz"),  # next to a space once, a mark is dropped everywhere
        ("x\xa0-y-z", "x y z"),  # only a space, a tab or a new line counts
        ("." * 33, "."),  # the official script drops at most 32 periods
        ("howd", "how'd"),
        ("whove", "who've"),
        ("Im", "im"),  # the official table has it capitalised, which never matches lower-cased answers
        ("twas", "'twas"),
        ("10 a.m.", "10 am"),
        (".5", ".5"),
        ("$5", "$5"),
        ("a", "a"),  # an answer of articles only keeps them
        ("A", "a"),
        ("A.", "a"),
        ("(A)", "a"),
        ("(B)", "b"),
        (" The\n", "the"),
        ("a  the", "a the"),
        ("?", "?"),
        ("B", "b"),
        ("a b", "b"),
        (" ", ""),
    ],
)
def test_normalisation(answer, normal):
    assert normalise_answer(answer) == normal


@pytest.mark.parametrize(("count", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators(count, score):
    answers = ["yes"] * count + ["no"] * (10 - count)
    assert vqa_accuracy("yes", answers) == pytest.approx(score)


def test_a_single_answer_is_plain_equality():
    assert vqa_accuracy("The chair", ["chair"]) == 1.0
    assert vqa_accuracy("table", ["chair"]) == 0.0


def test_both_sides_are_normalised_where_annotators_differ():
    assert vqa_accuracy("Two.", ["two"] * 9 + ["2"]) == 1.0
    assert vqa_accuracy("the cat", ["cat.", "a cat"] * 5) == 1.0


def test_unanimous_answers_are_compared_as_written():
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy(" two\n", ["two", "two "] * 5) == 1.0


def test_withheld_answers_raise_an_error():
    for score in (lambda: vqa_accuracy("yes", []), lambda: best_accuracy([])):
        with pytest.raises(ValueError, match="withheld"):
            score()


@given(st.text(max_size=30))
def test_normalising_gives_single_spaced_words_without_articles(answer):
    words = normalise_answer(answer).split(" ")
    assert not {"a", "an", "the"} & set(words) or {"a", "an", "the"} >= set(words)
    assert all(words) or not answer.split()


def test_choice_letters_stay_distinct_answers():
    for letter in "ABCD":
        assert [vqa_accuracy(letter, [other]) for other in "ABCD"] == [float(letter == other) for other in "ABCD"]
        assert vqa_accuracy(letter.lower(), [letter]) == 1.0
        assert vqa_accuracy(letter, [letter] * 6 + ["the"] * 4) == 1.0 > vqa_accuracy("an", [letter] * 6 + ["the"] * 4)


@pytest.mark.parametrize(
    ("human_answers", "any_text", "of_list"),
    [
        (["yes"] * 10, 1.0, 1.0),
        (["Yes"] * 10, 1.0, 0.0),  # unanimous, so capitals count, and a normalised list has none
        (["two"] * 10, 1.0, 0.0),  # the list has "2"
        (["two"] * 9 + ["2"], 1.0, 1.0),
        (["Yes"], 1.0, 1.0),  # one answer is compared normalised
        (["yes", "yes"], 1 / 3, 1 / 3),  # leaving one of two out, one matches
        (["yes", "no"], 1 / 6, 1 / 6),
        (["yes"] * 3, 2 / 3, 2 / 3),
        (["yes"] * 4, 1.0, 1.0),
        (["yes"] * 3 + ["no"] * 7, 1.0, 0.9),  # "no" is not in the list
        (["no"] * 5 + ["never"] * 5, 1.0, 0.0),
        (["blue", "green", "grey"] * 3 + ["maroon"], 0.9, 0.0),
    ],
)
def test_the_best_possible_accuracy(human_answers, any_text, of_list):
    answers = ["yes", "2", "a"]
    assert best_accuracy(human_answers) == pytest.approx(any_text)
    assert best_accuracy(human_answers, AnswerList.of(answers)) == pytest.approx(of_list)


@given(
    st.lists(st.sampled_from(["yes", "Yes", "no", "two", "2", "a", "A", "the", "?"]), min_size=1, max_size=11),
    st.lists(st.sampled_from(["yes", "no", "2", "a", "the", "red"]), max_size=6),
)
def test_the_best_possible_accuracy_is_the_best_of_all_answers(human_answers, answers):
    every = [*human_answers, *answers, *map(normalise_answer, human_answers), "another"]
    assert best_accuracy(human_answers) == pytest.approx(max(vqa_accuracy(answer, human_answers) for answer in every))
    own = max((vqa_accuracy(answer, human_answers) for answer in answers), default=0.0)
    assert best_accuracy(human_answers, AnswerList.of(answers)) == pytest.approx(own)


@given(
    st.lists(st.sampled_from(["yes", "no", "two", "2"]), min_size=2, max_size=11), st.sampled_from(["yes", "2", "red"])
)
def test_accuracy_is_the_mean_over_the_ways_to_leave_one_out(answers, answer):
    form = str if len(set(answers)) == 1 else normalise_answer
    matches = [form(other) == form(answer) for other in answers]
    each = [min(1, sum(m for j, m in enumerate(matches) if j != i) / 3) for i in range(len(answers))]
    assert vqa_accuracy(answer, answers) == pytest.approx(sum(each) / len(answers))


@given(st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=10, max_size=10))
def test_more_votes_never_score_less(answers):
    ranked = sorted({"yes", "no", "maybe"}, key=answers.count)
    scores = [vqa_accuracy(a, answers) for a in ranked]
    assert scores == pytest.approx(sorted(scores))
    targets = soft_scores(answers, normalise_answer)  # training targets equal the metric
    assert scores == pytest.approx([targets.get(answer, 0.0) for answer in ranked])
