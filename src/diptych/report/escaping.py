"""Values made safe for the parts of a page that Jinja2's autoescape does not protect: URLs, styles, inline SVG.

Autoescape replaces ``& < > " '``, which protects text and quoted attributes. It does not stop ``src="javascript:..."``,
``style="background: url(...)"`` or markup that is inserted whole. `Markup` (text that is not escaped again) is made
only here, after a check against what is allowed; anything else raises ValueError.
"""

import math
import re
from xml.etree import ElementTree

from markupsafe import Markup, escape

# Characters that XML 1.0 forbids (XML 1.0, section 2.2), the C1 controls, and surrogates, which UTF-8 cannot encode.
_FORBIDDEN_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_IMAGE_URL = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_FRAGMENT = re.compile(r"#[A-Za-z][\w.-]*", re.ASCII)
_FRAGMENT_URL = re.compile(r"url\(#[A-Za-z][\w.-]*\)", re.ASCII)
# Of a style attribute: names, numbers, colours, quoted font names. No url(), no escapes, no at-rules, no comments.
_STYLE = re.compile(r"[\w\s#%.,:;()'-]*", re.ASCII)

SVG_ELEMENTS = frozenset({"svg", "title", "desc", "defs", "clipPath", "g", "path", "rect", "text", "tspan", "use"})
SVG_ATTRIBUTES = frozenset(
    {"aria-label", "class", "clip-path", "d", "height", "href", "id", "role"}
    | {"style", "transform", "viewBox", "width", "x", "y"}
)


def replace_forbidden_characters(text: str) -> str:
    """The text with every character that may not stand in HTML or XML replaced by U+FFFD."""
    return _FORBIDDEN_CHARACTERS.sub("\ufffd", text)


def isolate(value: object) -> Markup:
    """Escaped text in a `<bdi>` element, so that right-to-left text cannot reorder its neighbours."""
    return Markup("<bdi>{}</bdi>").format(str(value))


def number(value: str | float) -> Markup:
    """A table cell: floats with four significant digits, everything else as isolated text."""
    return escape(f"{value:.4g}") if isinstance(value, float) else isolate(value)


def percent(share: float) -> str:
    """A share as a percentage, clipped to [0 %, 100 %], with one decimal below 10 %; 0 % if it is not finite."""
    if not math.isfinite(share):
        return "0%"
    return f"{100 * min(max(share, 0), 1):.{0 if share >= 0.0995 else 1}f}%"


def image_url(url: str) -> Markup:
    """The URL of an embedded image, for `src`. Raises ValueError unless it is a base64 data URI of a PNG or JPEG."""
    if not _IMAGE_URL.fullmatch(url):
        raise ValueError(f"expected a data URI of a PNG or JPEG image, got {url[:60]!r}")
    return Markup(url)


def css_url(url: str) -> Markup:
    """`url(...)` of an embedded image, for a style. Raises ValueError as `image_url` does."""
    return Markup(f"url({image_url(url)})")


def css_ratio(size: tuple[int, int]) -> str:
    """`width/height`, for `aspect-ratio`."""
    width, height = size
    return f"{width:d}/{height:d}"


def stylesheet(css: str) -> Markup:
    """The content of a `<style>` element. Raises ValueError for CSS that ends the element or loads something."""
    for forbidden in ("</", "<!--", "url(", "@import", "\\"):
        if forbidden in css.lower():
            raise ValueError(f"the stylesheet of a report may not contain {forbidden!r}")
    return Markup(css)


def inline_svg(root: ElementTree.Element) -> Markup:
    """An SVG element tree (names without namespaces) as markup for an HTML page.

    Raises ValueError for elements or attributes outside the allow-list, and for references beyond the page.
    """
    for element in root.iter():
        if element.tag not in SVG_ELEMENTS:
            raise ValueError(f"SVG element {element.tag!r} is not allowed in a report")
        for name, value in element.attrib.items():
            if name not in SVG_ATTRIBUTES or not _is_safe_attribute(name, value):
                raise ValueError(f"SVG attribute {name}={value[:60]!r} is not allowed in a report")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _is_safe_attribute(name: str, value: str) -> bool:
    """Whether the value stays within the page: `href` and `clip-path` name a fragment, a style contains no URL."""
    if name == "href":
        return _FRAGMENT.fullmatch(value) is not None
    if name == "clip-path":
        return _FRAGMENT_URL.fullmatch(value) is not None
    if name == "style":
        return _STYLE.fullmatch(value) is not None and "url(" not in value.replace(" ", "").lower()
    return True
