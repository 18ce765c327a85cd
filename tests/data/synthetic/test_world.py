"""Scenes depend on their seed only, fit their images, and keep held-out pairs for the split "novel"."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from diptych.data.sources.base import DataError
from diptych.data.synthetic import SceneQuestions, Scenes
from diptych.data.synthetic.render import mask, render
from diptych.data.synthetic.shapes import KINDS, proportions, silhouette
from diptych.data.synthetic.source import MAX_SCENES
from diptych.data.synthetic.world import COLORS, HELD_OUT

_DIGEST = """
import hashlib, sys
from diptych.data.synthetic import SceneQuestions, Scenes
s = Scenes("val", 6, seed=3)
q = SceneQuestions(s)
samples = [(s.image(i).tobytes(), s.captions(i), s.scene(i)) for i in reversed(range(6))][::-1]
print(hashlib.sha256(repr((samples, [q.question(i) for i in range(30)])).encode()).hexdigest(), "torch" in sys.modules)
"""


@pytest.mark.slow
def test_another_process_gives_the_same_scenes_without_importing_torch():
    scenes = Scenes("val", 6, seed=3)
    questions = SceneQuestions(scenes)
    samples = [(scenes.image(i).tobytes(), scenes.captions(i), scenes.scene(i)) for i in range(6)]
    expected = hashlib.sha256(repr((samples, [questions.question(i) for i in range(30)])).encode()).hexdigest()
    process = subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True).stdout.split()
    assert process == [expected, "False"]


def test_seeds_and_splits_differ():
    images = {Scenes(split, 1, seed=seed).image(0).tobytes() for split in ("train", "val") for seed in (0, 1)}
    assert len(images) == 4


def test_an_image_is_a_new_copy_at_each_call():
    scenes = Scenes("val", 1)
    whole = scenes.image(0)
    scenes.image(0).thumbnail((8, 8))
    assert scenes.image(0) == whole


def test_size_does_not_change_a_sample():
    assert Scenes("train", 5).scene(3) == Scenes("train", 500).scene(3)


@pytest.mark.slow
def test_held_out_pairs_are_only_in_novel():
    assert {kind for _, kind in HELD_OUT} == set(KINDS) and {color for color, _ in HELD_OUT} == set(COLORS)
    for split in ("train", "val", "test"):
        scenes = Scenes(split, 400)
        assert not {(t.color, t.kind) for i in range(400) for t in scenes.scene(i).things} & HELD_OUT
    novel = Scenes("novel", 200)
    assert all({(t.color, t.kind) for t in novel.scene(i).things} & HELD_OUT for i in range(200))


@pytest.mark.slow
def test_no_training_question_names_a_held_out_pair():
    questions = SceneQuestions(Scenes("train", 600))
    texts = [questions.question(i).text for i in range(len(questions))]
    assert not [t for t in texts for color, kind in HELD_OUT if f"{color} {kind} " in t]


@pytest.mark.quick("64")
@pytest.mark.parametrize("pixels", [64, 96, 200])
@pytest.mark.slow
def test_boxes_are_inside_the_image_and_objects_differ(pixels):
    scenes = Scenes("train", 150, pixels=pixels)
    for i in range(len(scenes)):
        scene = scenes.scene(i)
        assert 1 <= len(scene.things) <= 5
        assert len({(t.color, t.kind) for t in scene.things}) == len(scene.things)
        assert scenes.image(i).size == (scene.width, scene.height) and scenes.image(i).mode == "RGB"
        for x1, y1, x2, y2 in (t.box for t in scene.things):
            assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height


def test_the_mask_fills_its_box():
    scenes = Scenes("train", 60)
    for thing in (t for i in range(60) for t in scenes.scene(i).things):
        rows, columns = np.nonzero(mask(thing) > 40)
        x1, y1, x2, y2 = thing.box
        bounds = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])  # one pixel of margin
        assert np.abs(bounds - [1, 1, x2 - x1 + 1, y2 - y1 + 1]).max() <= 1, (thing, bounds)


@pytest.mark.slow
def test_an_object_changes_the_pixels_of_its_box_and_no_others():
    scenes = Scenes("train", 60)
    for i in range(60):
        scene = scenes.scene(i)
        *rest, last = scene.things
        before = np.asarray(render(replace(scene, things=tuple(rest))), dtype=int)
        changed = np.abs(np.asarray(render(scene), dtype=int) - before).max(axis=2) > 40
        x1, y1, x2, y2 = last.box
        assert changed[y1:y2, x1:x2].mean() > 0.15, (i, last)
        changed[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        assert not changed.any(), (i, last)


def test_kinds_look_different():
    def drawing(kind: str) -> np.ndarray:
        from diptych.data.synthetic.world import Thing

        w, h = (round(40 * side) for side in proportions(kind))
        canvas = np.zeros((42, 42))
        drawn = mask(Thing(kind, "red", "plain", "large", (0, 0, w, h)))
        canvas[: h + 2, : w + 2] = drawn / 255
        return canvas

    images = {kind: drawing(kind) for kind in KINDS}
    for a in KINDS:
        assert max(polygon.max() for polygon in silhouette(a)) == pytest.approx(1)
        for b in KINDS:
            assert a == b or np.abs(images[a] - images[b]).mean() > 0.05, (a, b)


def test_relations_are_opposites():
    scenes = Scenes("val", 100)
    for scene in map(scenes.scene, range(100)):
        for a, relation, b in scene.relations():
            opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[relation]
            assert scene.holds(b, opposite, a) and not scene.holds(b, relation, a)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("trian",), "trian"),
        (("val", 0), "size must be in .*: got 0"),
        (("val", 5, 0, 8), "pixels must be in .*: got 8"),
    ],
)
def test_invalid_settings_raise(arguments, message):
    with pytest.raises(DataError, match=message):
        Scenes(*arguments)


def test_an_index_out_of_range_raises():
    with pytest.raises(IndexError, match="image 5"):
        Scenes("val", 5).scene(5)


def test_the_sheet_is_written(tmp_path):
    from diptych.data.synthetic.__main__ import sheet

    page = sheet(Scenes("val", 3))
    assert np.asarray(page).std() > 10


@pytest.mark.parametrize(
    "spec", ["scenes:0", "scenes:-1", "scenes:abc", "scenes:1e9", "scenes:", "scenes:1000000000", "scenes:" + "9" * 99]
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_impossible_number_of_scenes_raises(spec: str, split: str):
    with pytest.raises(DataError, match=r"write scenes:2000"):
        Scenes.from_spec(spec, split)


def test_the_number_of_scenes_is_that_of_the_train_split():
    assert len(Scenes.from_spec("scenes:2000", "train")) == 2000 and len(Scenes.from_spec("scenes:2000", "val")) == 1000
    assert len(Scenes.from_spec(f"scenes:{MAX_SCENES}", "train")) == MAX_SCENES
    with pytest.raises(DataError, match=r"must be in \[1, 200,000\]"):
        Scenes("train", MAX_SCENES + 1)
