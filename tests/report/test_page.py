"""The page: every string of every kind of section stays text; nothing is loaded or run."""

import re
from dataclasses import fields
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from diptych.report import (
    AnswerExample,
    CaptionExample,
    Curve,
    Facts,
    FilteringExample,
    Findings,
    GroundingExample,
    HeatMap,
    Histogram,
    NearDuplicateExample,
    RetrievalExample,
    Section,
    Table,
    write_report,
)
from diptych.report.page import KINDS, environment, render_page

HOSTILE = "\"><script>alert('1')</script><img src=http://example.org/x onerror=alert(1)>' & \u202e\x00\ud800"
IMAGE = Image.new("RGB", (64, 48), "teal")
SECTIONS = [
    Table(HOSTILE, [HOSTILE, "R@1"], [[HOSTILE, 0.12345]], HOSTILE),
    Findings([(HOSTILE, HOSTILE), ("error", "mlm is NaN")]),
    Curve(HOSTILE, [1, 2], [0.7, 0.6], 0.693, HOSTILE),
    Curve(f"val/{HOSTILE}", [2], [0.65]),
    RetrievalExample(HOSTILE, [(IMAGE, 0.9, True)]),
    RetrievalExample(IMAGE, [(HOSTILE, 0.9, False)]),
    AnswerExample(IMAGE, HOSTILE, [(HOSTILE, 0.5), ("no", float("nan"))], HOSTILE, 0.0),
    GroundingExample(IMAGE, HOSTILE, [0, 0, 0.5, 1], [float("nan"), -1, 2, 0.3], 0.4, 0.6),
    GroundingExample(IMAGE, HOSTILE, (0.1, 0.1, 0.5, 0.6), (0, 0, 1, 1), float("nan"), 0.3),
    GroundingExample(IMAGE, HOSTILE, (0.1, 0.1, 0.5, 0.6), (0, 0, 1, 1), None, 0.7),
    CaptionExample(IMAGE, HOSTILE, 0.7, [HOSTILE, "a dog"]),
    FilteringExample(IMAGE, HOSTILE, [(HOSTILE, HOSTILE, True), ("dropped", "match 0.1", False)]),
    NearDuplicateExample([(IMAGE, HOSTILE), (IMAGE, "a.jpg")], HOSTILE),
    Histogram(HOSTILE, [0, 0.5, 1], {HOSTILE: [1, 3], "empty": [0, 0]}, 0.5),
    HeatMap(IMAGE, [HOSTILE, "dog"], np.ones((2, 3, 4)), 0.4, HOSTILE),
    Facts({HOSTILE: HOSTILE}),
]
IMAGES = 14  # <img> elements of these sections


class Elements(HTMLParser):
    """The elements of a page with their attributes, its text, and the elements that are not closed."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.around_hostile: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # no string closes an element of the page

    def handle_data(self, data):
        self.text += data
        if "<script>alert" in data:
            self.around_hostile.add(self.open[-1])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("run") / "report.html"
    return write_report(path, HOSTILE, SECTIONS).read_text(encoding="utf-8")


def hostile_strings(value: object) -> int:
    """How often HOSTILE occurs in a section, at any depth."""
    if isinstance(value, str):
        return int(HOSTILE in value)
    if isinstance(value, dict):
        return sum(map(hostile_strings, [*value.keys(), *value.values()]))
    return sum(map(hostile_strings, value)) if isinstance(value, list | tuple) else 0


def test_every_kind_of_section_is_tested_with_hostile_strings():
    assert set(map(type, SECTIONS)) == set(get_args(Section)) == set(KINDS)
    for section in SECTIONS:
        assert any(hostile_strings(getattr(section, field.name)) for field in fields(section)), type(section)


def test_hostile_strings_are_shown_and_never_become_elements(page: str):
    elements = Elements(page)
    assert elements.open == []
    # In an HTML page's text, only <title> cannot contain <bdi>; <text> and <title> of an SVG are isolated themselves.
    assert elements.around_hostile == {"bdi", "title", "text"}
    assert not {tag for tag, _ in elements.elements} & {"script", "iframe", "object", "link", "base", "form"}
    assert not any(name.startswith("on") for _, attributes in elements.elements for name in attributes)
    assert sum(tag == "img" for tag, _ in elements.elements) == IMAGES
    strings = sum(hostile_strings(getattr(section, field.name)) for section in SECTIONS for field in fields(section))
    assert elements.text.count("<script>alert('1')</script>") >= strings


def test_characters_that_html_forbids_are_replaced(page: str):
    assert "\x00" not in page and "\ufffd" in page


@pytest.mark.parametrize("text", ["{{ 7 * 7 }}", "{% raw %}", "{# x #}", "</style>", "<!--", "&lt;"])
def test_text_is_never_read_as_a_template_or_as_markup(text: str):
    elements = Elements(render_page(text, [Table(text, ["a"], [[text]]), Facts({"data": text})]))
    assert elements.text.count(text) == 5 and elements.open == []


def test_nothing_is_loaded(page: str):
    for tag, attributes in Elements(page).elements:
        assert not {"srcset", "data", "action"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert (attributes.get("src") or "data:image/").startswith("data:image/"), tag
    styles = re.findall(r"<style>(.*?)</style>", page, re.S) + re.findall(r'style="([^"]*)"', page)
    urls = [url for style in styles for url in re.findall(r"url\((.*?)\)", style)]
    assert urls and all(url.startswith("data:image/") for url in urls)
    assert "@import" not in "".join(styles)
    assert "default-src 'none'" in unescape(page)


def test_a_name_that_nothing_defines_is_an_error():
    with pytest.raises(UndefinedError):
        environment().get_template("page.html").render(title="run")


def test_the_page_fits_light_and_dark_schemes_and_phones(page: str):
    assert "prefers-color-scheme: dark" in page and 'content="width=device-width, initial-scale=1"' in page


def test_a_token_has_an_overlay_on_each_of_two_scales(page: str):
    assert page.count("data:image/png") == 2 * 2
    assert "8.3%" in page  # a uniform plan over 12 patches has a maximum of 1/12


def test_training_and_held_out_curves_share_a_chart():
    page = render_page(
        "run", [Curve("itm", [1, 2], [0.7, 0.6]), Curve("mlm", [1], [7.0]), Curve("val/itm", [2], [0.65])]
    )
    assert page.count("<svg") == 2 and page.count(">held-out</text>") == 1


def test_neighbouring_sections_of_one_kind_share_a_heading():
    table = Table("VQA", ["a"], [[1.0]])
    page = render_page("run", [table, table, Findings([]), table])
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Results", "Findings", "Results"]
    assert "Nothing found." in page


def test_a_failed_write_leaves_the_old_report_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_report(tmp_path / "report.html", "first", [])

    def fails(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="no space"):
        write_report(path, "second", [])
    assert "first" in path.read_text(encoding="utf-8") and list(tmp_path.iterdir()) == [path]


def test_shapes_that_cannot_be_drawn_are_named():
    with pytest.raises(ValueError, match=r"heat map 'dog': the plan is \(2, 3, 4\), expected \(1 tokens"):
        HeatMap(IMAGE, ["dog"], np.ones((2, 3, 4)), 0.1, "dog")
    with pytest.raises(ValueError, match="histogram 'scores': 3 series, expected at most 2"):
        Histogram("scores", [0, 1], {"a": [1], "b": [1], "c": [1]})
    with pytest.raises(ValueError, match="histogram 'scores': 1 counts of 'a', expected 2"):
        Histogram("scores", [0, 1, 2], {"a": [1]})
    with pytest.raises(ValueError, match="table 'VQA', row 1: 1 cells for 2 columns"):
        Table("VQA", ["a", "b"], [[1, 2], [3]])
