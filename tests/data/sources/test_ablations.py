"""Ablated questions hide one side, and shuffled captions never keep an image with its own caption."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.data.sources.ablations import GREY, AblatedQuestions, ShuffledCaptions, guesses
from diptych.data.sources.base import DataError, Question
from diptych.data.synthetic import SceneQuestions, Scenes


def test_no_image_keeps_its_captions_and_none_is_lost():
    scenes = Scenes("val", 12)
    shuffled = ShuffledCaptions(scenes, seed=3)
    assert all(shuffled.owner[i] != i for i in range(12))
    assert sorted(shuffled.captions(i) for i in range(12)) == sorted(scenes.captions(i) for i in range(12))
    assert shuffled.image(4).tobytes() == scenes.image(4).tobytes()


def test_shuffling_depends_on_its_seed_only():
    first, again, other = (ShuffledCaptions(Scenes("val", 30), seed).owner for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("hidden", ["image", "text"])
def test_an_ablation_hides_one_side_and_keeps_the_other(hidden: str):
    plain = SceneQuestions(Scenes("val", 3))
    ablated = AblatedQuestions(plain, hidden)
    assert len(ablated) == len(plain)
    grey = bool((np.asarray(ablated.image(1)) == GREY).all())
    assert grey == (hidden == "image")
    assert (ablated.question(7).text == plain.question(7).text) == (hidden == "image")
    assert ablated.question(7).answers == plain.question(7).answers
    assert ablated.image(1).size == plain.image(1).size


def test_features_of_an_image_are_available_only_where_it_is_visible():
    """A detector's regions are looked up by the file's name, and cached features by its bytes."""

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


def test_the_hidden_side_is_image_or_text():
    with pytest.raises(ValueError, match="'image' or 'text'"):
        AblatedQuestions(SceneQuestions(Scenes("val", 1)), "both")


class Questions:
    """Questions without images."""

    name, split = "questions", "train"

    def __init__(self, *rows: tuple[str, str, str]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def question(self, index: int) -> Question:
        text, answers, kind = self.rows[index]
        return Question(index, index, text, tuple(answers.split()), kind)

    def image(self, index: int):
        raise AssertionError("an image was read")

    def where(self, index: int) -> str:
        return f"row {index}"


def test_each_baseline_uses_only_the_information_in_its_name():
    ways = guesses(
        Questions(
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
        ("What color is the sky?", "color", ("red", "red", "red")),  # starts with the same words
        ("Is there anything?", "exist", ("red", "yes", "yes")),
        ("Is it there?", "exist", ("red", "yes", "red")),  # no question starts with these words
        ("How many?", "count", ("red", "red", "red")),
        ("Withheld?", "", ("red", "red", "red")),
    ):
        assert tuple(guess(Question(0, 0, text, (), kind)) for guess in ways.values()) == expected, text


def test_ties_between_common_answers_are_broken_alphabetically():
    ways = guesses(Questions(("Why?", "b", ""), ("Why?", "a", ""), ("How so?", "c", "")), str)
    assert list(ways) == ["most common answer", "question only"]  # the questions have no kinds
    assert [ways["question only"](Question(0, 0, text, ())) for text in ("why", "how so", "no")] == ["a", "c", "a"]


def test_questions_without_answers_raise():
    with pytest.raises(DataError, match=r"questions \(train\): its questions have no answers"):
        guesses(Questions(("Why?", "", "")), str)
