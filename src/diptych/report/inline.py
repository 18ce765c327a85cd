"""The small pieces of a page: text that can only be text, pictures, numbers."""

import math
from html import escape

from PIL import Image

from .pictures import data_uri


def item(shown: Image.Image | str) -> str:
    """A caption or a picture."""
    return f'<p class="words">{text(shown)}</p>' if isinstance(shown, str) else picture(shown)


def picture(shown: Image.Image) -> str:
    """The picture itself, embedded."""
    return f'<img alt="" src="{data_uri(shown)}">'


def text(shown: object) -> str:
    """Escaped, and isolated, so that a right-to-left caption can't reorder its neighbours."""
    return f"<bdi>{escape(str(shown))}</bdi>"


def number(value: str | float) -> str:
    """Text is escaped; a fraction has four significant digits at most."""
    return text(value) if isinstance(value, str | int) else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in [0, 1], clipped; one decimal below ten percent."""
    if not math.isfinite(share):
        return "0%"
    return f"{100 * min(max(share, 0), 1):.{0 if share >= 0.0995 else 1}f}%"
