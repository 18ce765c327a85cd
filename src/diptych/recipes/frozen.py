"""What the `small` recipes share: every system learns from the same frozen features, so that what differs is the system.

Matching is taught by images drawn at random, not by hard negatives, also where the paper has these: what was drawn made no difference
to retrieval here (LOG.md, "seven ways"), and hard ones fuse three pairs a sample, where random ones fuse one.

Images are what all stages of an ImageNet CNN see, pooled in fixed boxes (extra ``cnn``), texts MiniLM's word states (extra
``minilm``), which is read onward where a model learns to write with them (CoCa, BEiT-3). Both are computed once for each picture and caption, but for captions
with hidden words, which are read anew. On Flickr8k a run takes 4 to 22 minutes of a busy core (docs/results.md): much longer, and the 6,000 photographs are learned by heart.
"""

from __future__ import annotations

from diptych.data.settings import ImageSettings
from diptych.recipes.models import Model
from diptych.recipes.run import Embedders, Objectives, Pretrain, WordStates
from diptych.train.settings import Optimizer, Training

SCALES = ((1.0, 1.0, 1), (0.6, 0.6, 2), (0.4, 0.4, 3))
"""14 boxes: the whole picture, its quarters, its ninths, each somewhat larger."""

WIDER, WIDEST = 2.0, 3.5
"""BERT draws weights with 0.02, which for these models' 192 channels is little: matching leaves its floor later, and contrast
generalises better (docs/results.md, LOG.md). 0.07, 1 / √192 as in CLIP's rule, is for systems that do not contrast; 0.04 for
those that do, and what they start from."""

IMAGES = ImageSettings(shorter=448, patch=32, square=True)

FEATURES, DETECTED = 2024, 1000
"""Numbers per box, and classes that the CNN tells of each."""


def frozen(
    recipe: str, model: Model, objectives: Objectives, steps: int = 240, batch: int = 128, learning_rate: float = 1e-3,
    text: WordStates = "minilm", widen: float = 1.0,
) -> Pretrain:  # fmt: skip
    """A run on frozen features."""
    return Pretrain(
        recipe=recipe,
        model=model,
        objectives=objectives,
        widen=widen,
        images=IMAGES,
        embed=Embedders(image="hypercolumns", scales=SCALES, text=text, dropout=0.1),
        training=Training(
            steps=steps,
            batch=batch,
            workers=0,
            checkpoint_every=200,
            optimizer=Optimizer(learning_rate=learning_rate, weight_decay=0.05, warmup=0.1, schedule="cosine"),
        ),
    )
