"""A run: everything that makes one, as frozen dataclasses of plain values. A variant is a `replace`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from diptych.config.data import ImageSettings, Streaming
from diptych.config.training import Training
from diptych.config.validation import (  # fmt: skip
    Count,
    CountOrNone,
    Dim,
    Factor,
    Longest,
    MaxLength,
    NumBeams,
    NumClasses,
    Places,
    Range,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    Steps,
    Text,
    Weight,
    Workers,
    settings,
)
from diptych.models.configs import Model


@settings("objectives")
class Objectives:
    """The weight of each pre-training loss; at 0 it is not computed. Below them, what several papers set differently."""

    itm: Weight = 0.0  # image-text matching
    mlm: Weight = 0.0  # masked words
    itc: Weight = 0.0  # image-text contrast
    wpa: Weight = 0.0  # word-patch alignment by optimal transport
    grid_distillation: Weight = 0.0  # imitation of a CNN, patch by patch
    class_distillation: Weight = 0.0  # imitation of a CNN's class distribution
    lm: Weight = 0.0  # next words: captioning
    masked_captions: Weight = 0.0  # masked words of a caption that sees only what came before (BEiT-3)
    masked_regions: Weight = 0.0  # masked regions
    mim: Weight = 0.0  # masked images: the pixels of hidden patches
    masked_codes: Weight = 0.0  # masked images: the visual tokens of hidden patches, beside a text with hidden words
    masked_codes_image_only: Weight = 0.0  # the same, of images without their texts
    mlm_text_only: Weight = 0.0  # masked words of texts without their images, beside the other objectives
    vqkd: Weight = 0.0  # a visual tokenizer: what the CNN sees in each patch, told by its code
    triplet: Weight = 0.0  # the margin between a true pair and its hardest negative
    whole_words: bool = True  # masked words: all pieces of a word or none
    mask_rate: ShareAboveZero = 0.15  # masked words: share of pieces hidden
    text_only: bool = False  # masked words: of the text without its image
    hard_negatives: bool = False  # matching: with what contrast finds alike, in place of images drawn at random
    uniform_mix: Share = 0.0  # hard negatives: a share added to every candidate's probability (BLIP: 1e-4)
    itc_form: Literal["softmax", "sigmoid"] = "softmax"  # contrast: among the batch, or pair by pair
    label_smoothing: ShareBelowOne = 0.0  # next words, captions: the targets' share spread over the vocabulary
    mask_regions: bool = False  # matching and masked words read the pair with regions hidden, once for all (ViLBERT)
    region_target: Literal["classes", "features", "contrast"] = "classes"  # masked regions: what is to be told
    min_block: Annotated[int, Range(1, 4096)] = 16  # codes: patches of the smallest block
    local_negatives: bool = False  # hard negatives: of each process's own part of the batch
    mim_rate: Annotated[float, Range(0, 1, "both")] = 0.75  # masked images: share of patches hidden
    mlm_text_only_rate: ShareAboveZero = 0.15  # masked words of texts beside other objectives: share of pieces hidden
    codebook_size: Annotated[int, Range(2, 2**16)] = 8192  # codes: how many visual tokens there are
    margin: Annotated[float, Range(0, 100)] = 0.2  # hinge
    hardest_only: bool = True  # hinge: only the hardest negative counts, not all


LOSSES = (
    "itm", "mlm", "itc", "wpa", "grid_distillation", "class_distillation", "lm", "masked_captions", "masked_regions", "mim",
    "masked_codes", "masked_codes_image_only", "mlm_text_only", "vqkd", "triplet",
)  # fmt: skip
"""The objectives that are losses, of each its weight; the others tell how some of these are asked."""


@settings("teacher")
class Teacher:
    """A momentum model beside the one that is trained, and its queue (ALBEF, section 3.2); momentum 0: none."""

    momentum: Share = 0.0
    alpha: Share = 0.4  # share of the targets that the teacher gives
    warmup: Steps = 0.0  # steps over which that share grows from 0; below 1: a share of the run
    queue_size: Annotated[int, Range(0, 2**24)] = 0  # pairs of features remembered

    def __post_init__(self) -> None:
        if self.queue_size and not self.momentum:
            raise ValueError(
                f"teacher.queue_size is {self.queue_size}, but there is no teacher: set teacher.momentum, or queue to 0"
            )


BOXES = ("boxes", "hypercolumns")
"""What a frozen CNN sees in the same boxes of every picture: its last map, or those of all stages."""


WordStates = Literal["own", "minilm", "minilm_onward", "minilm_words"]
"""What a text is read as:

- ``own``: the model's own words;
- ``minilm``: a frozen MiniLM's states of them, each of which has seen the whole text;
- ``minilm_onward``: what three of its stages say where no word has seen a later one, for models that foretell words;
- ``minilm_words``: its vector of each word by itself.
"""


@settings("embedders")
class Embedders:
    """What stands before a model's first block, exchanged by assignment after it is built."""

    # or "grid": a frozen CNN's cells; "boxes": those pooled in boxes; "hypercolumns": with what earlier stages saw there;
    # PATH: what a detector saw
    image: Text = "own"
    # of boxes: width and height as shares of the picture's, and places along each side; empty: 36 boxes (data/boxes.py)
    scales: Annotated[tuple[tuple[ShareAboveZero, ShareAboveZero, Places], ...], Longest(64)] = ()
    feature_dim: Dim = 1280  # numbers per region, where those come from PATH
    text: WordStates = "own"
    dropout: ShareBelowOne = (
        0.0  # of the features of regions and the word states that are given, before they are projected
    )


@settings()
class Pretrain:
    """A pre-training run. `start`: a run folder whose weights it begins with; empty: from random weights."""

    model: Model
    objectives: Objectives
    images: ImageSettings
    training: Training
    data: Text = "scenes"  # a folder, a file, tar shards, or the built-in world: scenes, scenes:2000
    split: Text = "train"  # what is learned from
    init_from: str = ""  # the run whose weights it begins with
    recipe: str = ""  # what the run is called
    max_patches: CountOrNone = 0  # images keep at most so many patches while training (ViLT: 200); 0: all
    teacher: Teacher = Teacher()
    embedders: Embedders = Embedders()
    # factor of linear layers' first weights: 0.02, which BERT draws them with, suits 768 channels; narrow models need more
    init_scale: Factor = 1.0
    heads: tuple[str, ...] = ("*",)  # of the model's, those that it has: imported ones may lack some; * stands for any
    freeze: tuple[str, ...] = ()  # parts of the model that do not learn; * stands for any part of a name
    init_image_from: str = (
        ""  # a ViT's run that the image side begins with (diptych import vit makes one of a checkpoint)
    )
    init_text_from: str = ""  # a BERT checkpoint that the text side begins with
    tokenizer: str = ""  # codes: the run that trained the visual tokenizer
    mixgen: Share = 0.0  # share of pairs that are mixed with another while training (MixGen: 0.25)
    grad_cache_size: CountOrNone = 0  # contrast: samples encoded at once (gradient caching); 0: all
    streaming: Streaming = field(default_factory=Streaming)
    corpus: str = ""  # what the paper learned from, in the field's terms
    vocabulary: str = ""  # the file of the pieces that texts are cut into; empty: the bundled ones of the model's size


@settings()
class Finetune:
    """A downstream run: a task's head on a pre-trained model, or on a fresh one where `start` is empty."""

    task: Text
    model: Model
    images: ImageSettings
    training: Training
    data: Text = "scenes"  # a folder, a file, tar shards, or the built-in world: scenes, scenes:2000
    split: Text = "train"  # what is learned from
    init_from: str = ""  # the run whose weights it begins with
    recipe: str = ""  # what the run is called
    embedders: Embedders = Embedders()
    init_scale: Factor = 1.0  # as in pre-training
    min_answer_count: Count = 1  # VQA: how often an answer must be given in training to be one of the classes
    max_answers: NumClasses = 3129  # VQA: how many classes at most
    negative_texts: Annotated[int, Range(1, 1024)] = 15  # retrieval: texts that a true one is told from
    ablate: Literal["", "image", "text"] = ""  # VQA: what is hidden, in training and in scoring: the baselines to beat
    vocabulary: str = ""  # as in pre-training


@settings()
class ImportedCheckpoint:
    """An official checkpoint that no recipe expresses: kept to be exported."""

    system: str
    task: str
    arguments: dict[str, Any]  # the model's, as weights.official infers them
    checkpoint: str  # the file's name
    why: str = ""  # what no recipe expresses


@settings()
class Evaluation:
    """How to score a run. `control`: captions are dealt to other pictures, which must bring every score to chance."""

    task: Literal["", "retrieval", "captioning", "vqa", "matching", "classification"] = (
        ""  # empty: the run's own; of pre-training matching
    )
    data: str = ""  # empty: what the run learned from
    split: Text = "val"
    gallery: CountOrNone = 0  # the first so many images; 0: all (not vqa)
    captions: CountOrNone = 0  # the first so many of each image; 0: all (not vqa)
    rerank: CountOrNone = 32  # retrieval: how many of those that contrast finds best are fused and matched; 0: none
    rerank_by: Literal["match", "cosine", "product"] = "product"  # match (ALBEF), + cosine (BLIP), x contrast
    num_beams: NumBeams = 3  # captioning: texts followed at once
    max_length: MaxLength = 30  # captioning: tokens, the first and the end among them
    shuffle_captions: bool = False
    ablate: Literal["", "image", "text"] = ""  # vqa: what is hidden
    seed: Seed = 0
    device: Text = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where the hardware has it, else fp32
    workers: Workers = 2  # processes that load data
    max_skipped: Share = 0.01  # share of bad samples at which scoring stops
