"""What a run's model can read."""

from __future__ import annotations

from diptych.data.tokenizer import Tokenizer
from diptych.data.vocabularies import SIZES, bundled
from diptych.data.vocabulary import Vocabulary
from diptych.jobs.folder import RunError
from diptych.recipes.models import Seeing, longest_text, pieces
from diptych.recipes.run import Finetune, Pretrain


def vocabulary_of(run: Pretrain | Finetune) -> Vocabulary | None:
    """The vocabulary that the run's texts are cut with: the bundled one of its model's size; None where there is none."""
    return bundled(pieces(run.model))


def tokenizer_of(run: Pretrain | Finetune) -> Tokenizer:
    """From texts to the pieces that the run's model reads.

    Raises RunError where it reads none, or unknown ones.
    """
    if isinstance(run.model, Seeing):
        raise RunError(f"a {type(run.model).__name__} reads no text; this needs a model that reads text and image")
    known = vocabulary_of(run)
    if known is None:
        there = " or ".join(f"the {size:,} pieces of {name}" for name, size in SIZES.items())
        raise RunError(
            f"model.vocabulary is {run.model.vocabulary}, but texts come in {there}; such a model can be imported and "
            "compared, not trained or scored on texts"
        )
    return Tokenizer(longest_text(run.model), known)
