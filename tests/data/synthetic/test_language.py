"""Captions are true of their scenes, and every question has exactly one answer, the one given."""

from collections import Counter, defaultdict
from dataclasses import replace
from importlib.resources import files

import pytest

from diptych.data.sources.ablations import guesses
from diptych.data.synthetic import SceneQuestions, Scenes, language
from tests.data.synthetic import reader


@pytest.mark.quick("novel")
@pytest.mark.parametrize("split", ["train", "novel"])
def test_captions_are_true(split):
    scenes = Scenes(split, 300)
    for i in range(len(scenes)):
        captions = scenes.captions(i)
        assert len(captions) == 5
        for text in captions:
            assert reader.caption_is_true(text, scenes.scene(i)), (i, text)


@pytest.mark.slow
def test_captions_distinguish_scenes():
    scenes = Scenes("val", 200)
    true_elsewhere = [
        reader.caption_is_true(text, scenes.scene((i + 1) % 200)) for i in range(200) for text in scenes.captions(i)
    ]
    assert sum(true_elsewhere) / len(true_elsewhere) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "novel"])
def test_answers_are_correct_and_unique(split):
    scenes = Scenes(split, 300)
    for i in range(len(scenes)):
        for question in language.questions(scenes.scene(i)):
            assert reader.answer(question.text, scenes.scene(i)) == question.answer, (i, question.text)


def test_the_reader_detects_a_wrong_caption_and_answer():
    scenes = Scenes("val", 1)
    scene = scenes.scene(0)
    things = tuple(replace(thing, color="black" if thing.color != "black" else "red") for thing in scene.things)
    other = replace(scene, things=things)
    assert not reader.caption_is_true(scenes.captions(0)[0], other)
    assert reader.answer(language.questions(scene)[0].text, other) == "no"


@pytest.mark.slow
def test_answers_are_balanced():
    questions = SceneQuestions(Scenes("train", 1200))
    answers = defaultdict(Counter)
    for question in map(questions.question, range(len(questions))):
        answers[question.kind][question.answers[0]] += 1
    assert set(answers) == {"exist", "count", "color", "material", "size", "kind", "relation", "compare"}
    for kind in ("exist", "relation"):
        assert answers[kind]["yes"] == answers[kind]["no"] > 0
    assert len(set(answers["compare"].values())) == 1 and set(answers["compare"]) == {"more", "fewer", "same"}
    for kind, options in {"count": 6, "color": 10, "material": 4, "size": 3, "kind": 16}.items():
        assert len(answers[kind]) == options
        total = sum(answers[kind].values())
        assert max(answers[kind].values()) / total < 1.6 / options, (kind, answers[kind])


@pytest.mark.slow
def test_guessing_without_the_image_scores_low():
    ways, test = guesses(SceneQuestions(Scenes("train", 1500)), str), SceneQuestions(Scenes("val", 300))
    reached: dict[str, list[bool]] = defaultdict(list)
    for question in map(test.question, range(len(test))):
        for way, guess in ways.items():
            reached[way].append(right := guess(question) == question.answers[0])
            reached[f"{way}: {question.kind}"].append(right)
    share = {way: sum(hits) / len(hits) for way, hits in reached.items()}
    assert share["question only"] < 0.40
    assert share["most common answer"] < 0.25
    assert share["question only: exist"] < 0.58 and share["question only: relation"] < 0.58
    assert share["question only: count"] < 0.27 and share["question only: color"] < 0.2


@pytest.mark.slow
def test_every_word_is_one_token():
    pieces = set((files("diptych.data.tokenizers") / "vocab" / "bert-base-uncased.txt").read_text("utf-8").splitlines())
    scenes = Scenes("train", 300)
    texts = (
        sentence.text
        for i in range(len(scenes))
        for sentence in (*language.captions(scenes.scene(i)), *language.questions(scenes.scene(i)))
    )
    assert not {word for text in texts for word in text.replace(",", " ").split()} - pieces
