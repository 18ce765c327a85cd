"""The checks behind autoescape: URLs, styles and inline SVG that could load or run something are refused."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from diptych import report
from diptych.report import escaping
from diptych.report.images import data_uri

PACKAGE = Path(report.__file__).parent
PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("filter_", [escaping.image_url, escaping.css_url])
@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "http://example.org/x.png",
        "//example.org/x.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,PHN2Zz4=",
        f"{PIXEL}) ; background: url(//example.org",
        f'{PIXEL}" onerror="alert(1)',
        f"{PIXEL}\n",
        f" {PIXEL}",
        "",
    ],
)
def test_only_embedded_png_and_jpeg_are_urls_of_images(filter_, url: str):
    with pytest.raises(ValueError, match="expected a data URI of a PNG or JPEG image"):
        filter_(url)


def test_embedded_images_pass_unchanged():
    for uri in (PIXEL, data_uri(Image.new("RGB", (4, 4))), data_uri(Image.new("RGBA", (4, 4)))):
        assert escaping.image_url(uri) == uri and escaping.css_url(uri) == f"url({uri})"


@pytest.mark.parametrize("value", ["1;background:url(//x)", (1, "2;}"), None])
def test_numbers_in_a_style_are_numbers(value):
    with pytest.raises((TypeError, ValueError)):
        escaping.percent(value)
    with pytest.raises((TypeError, ValueError)):
        escaping.css_ratio(value)


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0.0%"),
        (0.0994, "9.9%"),
        (0.0996, "10%"),
        (1.0, "100%"),
        (7.0, "100%"),
        (-1.0, "0.0%"),
        (float("nan"), "0%"),
    ],
)
def test_percentages_are_clipped(share: float, shown: str):
    assert escaping.percent(share) == shown


@pytest.mark.parametrize(
    "css",
    [
        "a {} </style><script>",
        "a { background: URL(//example.org) }",
        "@import 'x.css';",
        "a { background: \\75rl(//example.org) }",
        "<!-- a {}",
    ],
)
def test_a_stylesheet_that_ends_its_element_or_loads_something_is_refused(css: str):
    with pytest.raises(ValueError, match="the stylesheet of a report may not contain"):
        escaping.stylesheet(css)


@pytest.mark.parametrize(
    "svg",
    [
        "<svg><script>alert(1)</script></svg>",
        "<svg><foreignObject/></svg>",
        "<svg><style>* { display: none }</style></svg>",
        "<svg><image href='http://example.org/x.png'/></svg>",
        "<svg onload='alert(1)'/>",
        "<svg><use href='http://example.org/x.svg#a'/></svg>",
        "<svg><use href='javascript:alert(1)'/></svg>",
        "<svg><use href='#a)'/></svg>",
        "<svg><use href='#a http://example.org/x.svg'/></svg>",
        "<svg><use href='#a&#10;'/></svg>",
        "<svg><use href=' #a'/></svg>",
        "<svg><path clip-path='url(#a) url(//example.org/#a)'/></svg>",
        "<svg><path style='fill: red; /* x */ \\75 rl(//example.org)'/></svg>",
        "<svg><path style='fill: red&#10;@import &quot;x&quot;'/></svg>",
        "<svg><path clip-path='url(//example.org/#a)'/></svg>",
        "<svg><path style='fill: url(//example.org)'/></svg>",
        "<svg><path style='fill: URL (#a)'/></svg>",
        "<svg><path style='fill: \\75rl(a)'/></svg>",
        "<svg><g><animate attributeName='href'/></g></svg>",
    ],
)
def test_svg_that_could_load_or_run_something_is_refused(svg: str):
    with pytest.raises(ValueError, match=r"SVG (element|attribute) .* is not allowed in a report"):
        escaping.inline_svg(ElementTree.fromstring(svg))


def test_harmless_svg_passes_with_its_text_escaped():
    style = "font-family: 'DejaVu Sans'; fill: var(--ink)"
    svg = f'<svg><text style="{style}">&lt;b&gt; &amp;</text><use href="#a" /></svg>'
    assert escaping.inline_svg(ElementTree.fromstring(svg)) == svg


def test_text_is_isolated_and_forbidden_characters_are_replaced():
    assert escaping.isolate("<b>'\"&") == "<bdi>&lt;b&gt;&#39;&#34;&amp;</bdi>"
    assert (
        escaping.replace_forbidden_characters("a\x00\x1b\ud800\uffff\x85b\tc\n\u202e")
        == f"a{5 * chr(0xFFFD)}b\tc\n\u202e"
    )


def test_markup_is_made_in_one_file_and_templates_never_switch_escaping_off():
    made = re.compile(r"Markup\(|\|\s*safe\b|autoescape\s+false|Markup\.")
    sources = [*PACKAGE.glob("*.py"), *PACKAGE.glob("templates/*.html")]
    assert [file.name for file in sources if made.search(file.read_text(encoding="utf-8"))] == ["escaping.py"]


def test_attributes_of_templates_are_quoted_and_urls_and_styles_pass_their_filters():
    for file in PACKAGE.glob("templates/*.html"):
        source = re.sub(r"{#.*?#}", "", file.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"<[a-z][^<>]*=\s*{{", source), f"{file.name}: an attribute without quotes"
        assert not re.search(r"""\s(href|on\w+|srcset)=|<script""", source), file.name
        for url in re.findall(r'\ssrc="([^"]*)"', source):
            assert url.endswith("| image_url }}")
        for style in re.findall(r'\sstyle="([^"]*)"', source):
            for value in re.findall(r"{{(.*?)}}", style):
                assert re.search(r"\| (percent|css_ratio|css_url) $", value), f"{file.name}: {style}"
