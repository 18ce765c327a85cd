"""BEiT-3's runs (Wang et al., CVPR 2023, section 2.3 and appendix B); its pre-training code was not released."""

from __future__ import annotations

from diptych.data.settings import ImageSettings
from diptych.recipes.frozen import frozen
from diptych.recipes.models import BEiT3
from diptych.recipes.run import Objectives, Pretrain
from diptych.train.settings import Optimizer, Training


def base() -> Pretrain:
    """Masked words of pairs, half of them hidden, 1,000,000 steps of 6,144 samples of which a third are pairs.

    Differs: BERT's pieces, where the paper has a sentencepiece vocabulary of 64,010; the shares of images alone and of texts
    alone are runs of their own.
    """
    return Pretrain(
        recipe="beit3.base",
        model=BEiT3(vocabulary=30522, mask=103, speaks=True),
        objectives=Objectives(mlm=1.0, mask_rate=0.5, whole_words=False),
        images=ImageSettings(shorter=224, patch=16, square=True, augment=True),
        training=Training(
            steps=1_000_000,
            batch=2048,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05, warmup=10_000, schedule="cosine"
            ),
        ),
        corpus="CC12M, CC3M, SBU, COCO, VG (pairs); ImageNet-21k (images); Wikipedia, BookCorpus and others (texts)",
    )


def small() -> Pretrain:
    """On frozen features: contrast, as where the paper fine-tunes for retrieval, and masked words beside it."""
    model = BEiT3(
        width=256, depth=3, heads=4, hidden=512, grid=(7, 7), patch=32, vocabulary=30522, text_length=40, mask=103,
        speaks=True, drop=0.0,
    )  # fmt: skip
    return frozen("beit3.small", model, Objectives(itc=1.0, mlm=1.0, mask_rate=0.5, whole_words=False))
