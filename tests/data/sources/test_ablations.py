"""Blindfolds hide what they say, and the control keeps no image with its own words."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.data.sources.ablations import GREY, AblatedQuestions, ShuffledCaptions, guesses
from diptych.data.sources.base import DataError, Question
from diptych.data.synthetic import SceneQuestions, Scenes


def test_no_image_keeps_its_captions_and_none_is_lost():
    scenes = Scenes("val", 12)
    dealt = ShuffledCaptions(scenes, seed=3)
    assert all(dealt.owner[i] != i for i in range(12))
    assert sorted(dealt.captions(i) for i in range(12)) == sorted(scenes.captions(i) for i in range(12))
    assert dealt.image(4).tobytes() == scenes.image(4).tobytes()


def test_the_deal_depends_on_its_seed_alone():
    first, again, other = (ShuffledCaptions(Scenes("val", 30), seed).owner for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("hidden", ["image", "text"])
def test_a_blindfold_hides_one_side_and_keeps_the_other(hidden: str):
    plain = SceneQuestions(Scenes("val", 3))
    blind = AblatedQuestions(plain, hidden)
    assert len(blind) == len(plain)
    grey = bool((np.asarray(blind.image(1)) == GREY).all())
    assert grey == (hidden == "image")
    assert (blind.question(7).text == plain.question(7).text) == (hidden == "image")
    assert blind.question(7).answers == plain.question(7).answers
    assert blind.image(1).size == plain.image(1).size


def test_what_was_found_of_a_picture_is_found_again_where_it_is_seen_and_nowhere_else():
    """A detector's regions by the file's name, and what a network saw by its bytes."""

    class Named(SceneQuestions):
        def stem(self, index: int) -> str:
            return f"photo {index}"

        def file(self, index: int) -> bytes:
            return b"bytes of %d" % index

    plain = Named(Scenes("val", 3))
    words = AblatedQuestions(plain, "text")
    assert words.stem(2) == "photo 2" and words.file(2) == b"bytes of 2"
    ablated = AblatedQuestions(plain, "image")
    for i in range(3):
        assert ablated.file(i) != plain.file(i)
        alike = [ablated.file(j) == ablated.file(i) for j in range(3)]
        assert alike == [plain.image(j).size == plain.image(i).size for j in range(3)]
    with pytest.raises(DataError, match=r"--ablate image cannot hide regions.* leave it out"):
        ablated.stem(2)


def test_there_are_two_blindfolds():
    with pytest.raises(ValueError, match="'image' or 'text'"):
        AblatedQuestions(SceneQuestions(Scenes("val", 1)), "both")


class Asked:
    """Questions without pictures."""

    name, split = "asked", "train"

    def __init__(self, *rows: tuple[str, str, str]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def question(self, index: int) -> Question:
        text, answers, kind = self.rows[index]
        return Question(index, index, text, tuple(answers.split()), kind)

    def image(self, index: int):
        raise AssertionError("somebody looked")

    def where(self, index: int) -> str:
        return f"row {index}"


def test_guesses_know_as_much_as_they_say():
    ways = guesses(
        Asked(
            ("What color is the cat?", "Grey grey black", "color"),
            ("What color is the cat?", "black", "color"),
            ("what color  is the cat ?", "black", "color"),
            ("What color is a dog?", "red", "color"),
            ("What color is a bus?", "red", "color"),
            ("What color is that?", "red", "color"),
            ("Is there a cat?", "yes", "exist"),
            ("Is there a dog?", "yes", "exist"),
            ("Is there a bus?", "no", "exist"),
            ("Withheld?", "", ""),
        ),
        str.lower,
    )
    assert list(ways) == ["most common answer", "by kind", "question only"]
    for text, kind, expected in (
        ("What color is the cat?", "color", ("red", "red", "black")),  # the same question
        ("What color is the sky?", "color", ("red", "red", "red")),  # one that begins alike
        ("Is there anything?", "exist", ("red", "yes", "yes")),
        ("Is it there?", "exist", ("red", "yes", "red")),  # nobody asked so
        ("How many?", "count", ("red", "red", "red")),
        ("Withheld?", "", ("red", "red", "red")),
    ):
        assert tuple(guess(Question(0, 0, text, (), kind)) for guess in ways.values()) == expected, text


def test_of_answers_as_common_the_first_in_the_alphabet_is_guessed():
    ways = guesses(Asked(("Why?", "b", ""), ("Why?", "a", ""), ("How so?", "c", "")), str)
    assert list(ways) == ["most common answer", "question only"]  # there are no kinds
    assert [ways["question only"](Question(0, 0, text, ())) for text in ("why", "how so", "no")] == ["a", "c", "a"]


def test_without_answers_there_is_nothing_to_guess():
    with pytest.raises(DataError, match=r"asked \(train\): its questions have no answers"):
        guesses(Asked(("Why?", "", "")), str)
