"""Pictures side by side, and how alike they are."""

from . import inline
from .sections import AlikeExample


def alike(group: list[AlikeExample]) -> str:
    examples = []
    for example in group:
        pictures = "".join(
            f"<figure>{inline.picture(shown)}<figcaption>{inline.text(called)}</figcaption></figure>"
            for shown, called in example.pictures
        )
        examples.append(
            f'<article class="alike"><div>{pictures}</div><small>{inline.text(example.told)}</small></article>'
        )
    legend = "Pairs of pictures that may be one: look whether they are."
    return f'<p class="quiet">{legend}</p><div class="answers">{"".join(examples)}</div>'
