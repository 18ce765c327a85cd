"""What was published of each system: figures to stand beside ours, each with its source. None was measured here.

"Not verified here": told from the paper by memory; look it up before citing it. "As leaderboards list it": found so in public
lists of results (wizwand.com), not in the paper itself.
"""

from diptych.recipes.published.fact import Published, Weights
from diptych.recipes.published.fusers import FUSERS
from diptych.recipes.published.speakers import SPEAKERS
from diptych.recipes.published.towers import TOWERS

__all__ = ["PUBLISHED", "Published", "Weights"]

PUBLISHED: dict[str, Published] = TOWERS | FUSERS | SPEAKERS
