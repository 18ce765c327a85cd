"""BEiT-3's recipes (Wang et al., CVPR 2023, section 2.3 and appendix B); its pre-training code was not released."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import ImageSettings
from diptych.config.datasets import epochs_to_steps
from diptych.config.objectives import (
    ITC,
    MLM,
    VQKD,
    BlockMasking,
    MaskedCaptions,
    MaskedCodes,
    MaskedCodesImageOnly,
    Objectives,
    TextOnlyMLM,
)
from diptych.config.run import Finetune, Pretrain
from diptych.config.training import Optimizer, Training
from diptych.encoders.visual_tokenizer_config import VisualTokenizerConfig
from diptych.models.beit3.config import BEiT3Config
from diptych.models.common_recipes import CONTRASTIVE_INIT_SCALE, INIT_SCALE, on_frozen_features, on_images, vqa_v2

SMALL = BEiT3Config(
    dim=192,
    depth=3,
    num_heads=4,
    mlp_dim=384,
    grid=(7, 7),
    patch_size=32,
    vocab_size=30522,
    text_length=40,
    mask_token_id=103,
    with_decoder=True,
    drop_path=0.0,
)


def masked_data(patches: BlockMasking, codebook_size: int) -> Objectives:
    """Masked data modelling of images, texts and pairs (section 2.2): a pair's words and patches are masked at once."""
    return Objectives(
        mlm=MLM(rate=0.5, whole_words=False, image=patches),
        masked_codes=MaskedCodes(patches=patches, word_rate=0.5, whole_words=False, codebook_size=codebook_size),
        masked_codes_image_only=MaskedCodesImageOnly(patches=patches, codebook_size=codebook_size),
        mlm_text_only=TextOnlyMLM(whole_words=False),
    )


def visual_tokenizer() -> Pretrain:
    """BEiT v2's visual tokenizer (Peng et al. 2022, section 3.1): VQ-KD, 8,192 codes, 100 epochs of ImageNet-1k.

    Differs: the teacher is an ImageNet CNN (extra ``cnn``) with patches of 32 pixels, not CLIP's ViT-B/16.
    """
    return Pretrain(
        recipe="beit3.visual_tokenizer",
        model=VisualTokenizerConfig(patch_size=32, grid=(7, 7), feature_dim=1280),
        objectives=Objectives(vqkd=VQKD()),
        images=ImageSettings(shorter_side=224, patch_size=32, square=True),
        training=Training(
            steps=125_000,
            batch_size=1024,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=4e-4, betas=(0.9, 0.99), weight_decay=1e-4, warmup=0.1, schedule="cosine"
            ),
        ),
        corpus="ImageNet-1k, images only",
    )


def base() -> Pretrain:
    """Masked data modelling of images, texts and pairs: 1,000,000 steps of 2,048 pairs at 224 pixels. Its targets are
    the codes of a trained visual tokenizer: `visual_tokenizer` is the folder of that run.

    Differs: uses BERT's vocabulary; the paper uses a SentencePiece vocabulary of 64,010 (with its file: --vocabulary
    FILE --model.vocab_size 64010 --model.mask_token_id 64001). Uni-modal batches reuse the images and texts of the
    pairs; the paper draws 2,048 more of each.
    """
    return Pretrain(
        recipe="beit3.base",
        model=BEiT3Config(vocab_size=30522, mask_token_id=103, with_decoder=True),
        objectives=masked_data(BlockMasking(), codebook_size=8192),
        images=ImageSettings(shorter_side=224, patch_size=16, square=True, augment=True),
        training=Training(
            steps=1_000_000,
            batch_size=2048,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05, warmup=10_000, schedule="cosine"
            ),
        ),
        corpus="CC12M, CC3M, SBU, COCO, VG (pairs); ImageNet-21k (images); Wikipedia, BookCorpus and others (texts)",
    )


def small_visual_tokenizer() -> Pretrain:
    """Small visual tokenizer: VQ-KD, 256 codes for images of 224 pixels in patches of 32, 400 steps of 64 images. On
    Flickr8k about 5 min on one core with cached CNN features, 10 otherwise.

    Differs: horizontal flip only, no other augmentation, so that the CNN's features of an image are computed once.
    """
    run = visual_tokenizer()
    model = VisualTokenizerConfig(
        dim=192,
        depth=2,
        num_heads=4,
        mlp_dim=384,
        patch_size=32,
        grid=(7, 7),
        num_codes=256,
        code_dim=16,
        decoder_depth=1,
        feature_dim=1280,
    )
    optimizer = replace(run.training.optimizer, learning_rate=1e-3)
    training = replace(run.training, steps=400, batch_size=64, workers=1, checkpoint_every=200, optimizer=optimizer)
    return replace(run, recipe="beit3.small_visual_tokenizer", model=model, training=training, corpus="")


def small_masked_data() -> Pretrain:
    """Masked data modelling of images, texts and pairs: 240 steps of 64 pairs at 224 pixels. `visual_tokenizer` is the
    folder of a run of `small_visual_tokenizer`.
    """
    objectives = masked_data(BlockMasking(min_block=4), codebook_size=256)
    return on_images("beit3.small_masked_data", SMALL, objectives, init_scale=INIT_SCALE)


def small() -> Pretrain:
    """ITC only on frozen features, as in the paper's fine-tuning for retrieval (section 3.1): 300 steps of 256 pairs,
    7 min on Flickr8k.
    """
    model = replace(SMALL, with_decoder=False)
    return on_frozen_features(
        "beit3.small", model, Objectives(itc=ITC()), steps=300, batch=256, init_scale=CONTRASTIVE_INIT_SCALE
    )


def small_captions() -> Pretrain:
    """Masked captions only on frozen features, as in the paper's fine-tuning for captioning (section 3.1): 240 steps of
    256 pairs. Text features: MiniLM with a causal mask, as in coca.small.
    """
    objectives = Objectives(masked_captions=MaskedCaptions(rate=0.6, whole_words=False, label_smoothing=0.0))
    return on_frozen_features(
        "beit3.small_captions", SMALL, objectives, batch=256, text="minilm_causal", init_scale=CONTRASTIVE_INIT_SCALE
    )


def vqa() -> Finetune:
    """VQA v2 at 480 pixels, 10 epochs of 128 questions (the official fine-tuning code), from a run of `base`.

    Differs: trained on the train split only; the paper adds val and Visual Genome.
    """
    optimizer = Optimizer(
        learning_rate=3e-5, betas=(0.9, 0.98), weight_decay=0.01, warmup=0.1, schedule="cosine", part_rates=("head=20",)
    )
    images = ImageSettings(shorter_side=480, patch_size=16, square=True, augment=True)
    return vqa_v2("beit3.vqa", base(), images, 128, 10, optimizer)


def retrieval() -> Pretrain:
    """ITC only on COCO captions at 384 pixels: 15 epochs of 3,072 pairs (the official fine-tuning code; weight decay
    and warm-up are quoted from memory). To be initialised from a run of `base` (`init_from`), which has no ITC head.

    Differs: no layer-wise learning-rate decay (official code: 0.65).
    """
    run = base()
    optimizer = replace(run.training.optimizer, learning_rate=2e-4, eps=1e-8, weight_decay=0.05, warmup=3 / 15)
    return replace(
        run,
        recipe="beit3.retrieval",
        model=replace(run.model, grid=(24, 24)),
        objectives=Objectives(itc=ITC()),
        images=replace(run.images, shorter_side=384),
        training=replace(
            run.training, steps=epochs_to_steps(("COCO",), 3072, 15), batch_size=3072, optimizer=optimizer
        ),
        corpus="COCO",
    )
