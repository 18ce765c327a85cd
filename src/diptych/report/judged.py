"""Pictures, and what was decided about their captions."""

from . import inline
from .sections import JudgedExample


def judged(group: list[JudgedExample]) -> str:
    examples = []
    for example in group:
        texts = "".join(
            f'<li class="{"right" if stays else "wrong"}"><p class="words">{inline.text(said) if stays else f"<del>{inline.text(said)}</del>"}</p>'
            f"<small>{'✓' if stays else '✗'} {inline.text(told)}</small></li>"
            for said, told, stays in example.texts
        )
        examples.append(
            f'<article class="answer judged">{inline.picture(example.picture)}<div><h3>{inline.text(example.decision)}</h3>'
            f"<ul>{texts}</ul></div></article>"
        )
    return f'<p class="quiet">✓ stays with its picture, ✗ does not.</p><div class="answers">{"".join(examples)}</div>'
