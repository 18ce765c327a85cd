import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diptych.report import (
    AnswerExample,
    CaptionExample,
    Curve,
    Facts,
    Findings,
    HeatMap,
    Histogram,
    JudgedExample,
    RetrievalExample,
    Table,
    write_report,
)

HOSTILE = "\"><script>alert('1')</script><img src=http://example.org/x onerror=alert(1)>' & \u202e\x00\ud800"
PICTURE = Image.new("RGB", (64, 48), "teal")
SECTIONS = [
    Table(HOSTILE, [HOSTILE, "R@1"], [[HOSTILE, 0.12345]], HOSTILE),
    Findings([(HOSTILE, HOSTILE), ("error", "mlm is NaN")]),
    Curve(HOSTILE, [1, 2], [0.7, 0.6], 0.693, HOSTILE),
    Curve(f"val/{HOSTILE}", [2], [0.65]),
    RetrievalExample(HOSTILE, [(PICTURE, 0.9, True)]),
    RetrievalExample(PICTURE, [(HOSTILE, 0.9, False)]),
    AnswerExample(PICTURE, HOSTILE, [(HOSTILE, 0.5), ("no", float("nan"))], HOSTILE, 0.0),
    CaptionExample(PICTURE, HOSTILE, 0.7, [HOSTILE, "a dog"]),
    JudgedExample(PICTURE, HOSTILE, [(HOSTILE, HOSTILE, True), ("dropped", "match 0.1", False)]),
    Histogram(HOSTILE, [0, 0.5, 1], {HOSTILE: [1, 3], "empty": [0, 0]}, 0.5),
    HeatMap(PICTURE, [HOSTILE, "dog"], np.ones((2, 3, 4)), 0.4, HOSTILE),
    Facts({HOSTILE: HOSTILE}),
]


class Elements(HTMLParser):
    """Every element with its attributes, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # nested as written: no string closed what it should not

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("run") / "report.html"
    return write_report(path, HOSTILE, SECTIONS).read_text(encoding="utf-8")


def test_hostile_strings_are_shown_and_never_become_elements(page):
    elements = Elements(page)
    assert elements.open == []
    assert not {tag for tag, _ in elements.found} & {"script", "iframe", "object", "link", "base", "form"}
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert elements.text.count("<script>alert('1')</script>") >= 14


def test_nothing_is_fetched(page):
    for tag, attributes in Elements(page).found:
        assert not {"href", "srcset", "data", "action"} & attributes.keys()
        assert (attributes.get("src") or "data:image/").startswith("data:image/"), tag
    styles = re.findall(r"<style>(.*?)</style>", page, re.S) + re.findall(r'style="([^"]*)"', page)
    assert all(address.startswith("data:image/") for style in styles for address in re.findall(r"url\((.*?)\)", style))
    assert "@import" not in "".join(styles)
    assert "default-src 'none'" in page


def test_it_serves_both_schemes_and_phones(page):
    assert "prefers-color-scheme: dark" in page and 'content="width=device-width, initial-scale=1"' in page


def test_a_word_has_its_own_overlay_on_both_scales(page):
    assert page.count("data:image/png") == 2 * 2
    assert "8.3%" in page  # an even plan over 12 patches peaks at 1/12


def test_training_and_held_out_share_an_axis(tmp_path):
    sections = [Curve("itm", [1, 2], [0.7, 0.6]), Curve("mlm", [1], [7.0]), Curve("val/itm", [2], [0.65])]
    page = write_report(tmp_path / "report.html", "run", sections).read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert re.search(r'<svg[^>]*aria-label="itm over steps">.*?class="line train".*?class="line held-out"', page)


def test_a_failed_write_leaves_the_old_report_and_no_litter(tmp_path, monkeypatch):
    path = write_report(tmp_path / "report.html", "first", [])

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_report(path, "second", [])
    assert "first" in path.read_text(encoding="utf-8") and list(tmp_path.iterdir()) == [path]


def test_shapes_that_cannot_be_drawn_are_named():
    with pytest.raises(ValueError, match=r"heat map 'dog': the plan is \(2, 3, 4\), expected \(1 words"):
        HeatMap(PICTURE, ["dog"], np.ones((2, 3, 4)), 0.1, "dog")
    with pytest.raises(ValueError, match="histogram 'scores': 3 series, where two can be told apart"):
        Histogram("scores", [0, 1], {"a": [1], "b": [1], "c": [1]})
    with pytest.raises(ValueError, match="table 'VQA', row 1: 1 cells for 2 columns"):
        Table("VQA", ["a", "b"], [[1, 2], [3]])
