"""Pictures, and what was said of them."""

from . import inline
from .sections import CaptionExample


def captioned(group: list[CaptionExample]) -> str:
    examples = []
    for example in group:
        references = "".join(f"<li><small>{inline.text(said)}</small></li>" for said in example.references)
        examples.append(
            f'<article class="answer">{inline.picture(example.picture)}<div><p class="words">{inline.text(example.caption)}</p>'
            f"<small>CIDEr-D {inline.number(example.score)}</small><ul>{references}</ul></div></article>"
        )
    legend = "What the model says, and below it what people said of the same picture."
    return f'<p class="quiet">{legend}</p><div class="answers">{"".join(examples)}</div>'
