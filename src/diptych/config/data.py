"""Settings of the data pipeline. Torch-free: recipes and the command line import this file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from diptych.config.validation import (
    BoxesPerSide,
    Dim,
    Fraction,
    FractionBelowOne,
    MaxItems,
    PatchSize,
    Pixels,
    PixelsOrZero,
    PositiveFraction,
    Range,
    Text,
    require_at_most,
    settings,
)


@settings("streaming")
class Streaming:
    """Sequential reading of tar shards too many to index (see data/webdataset/streamed_shards.py).

    The shards are distributed over `lanes`, which the ranks share. The order of samples depends on `lanes` and
    `buffer`, not on the number of ranks. With `lanes` 0 the shards are indexed and read in random order.
    """

    # a multiple of ranks x micro-batches, and at most the number of tar files; 0: index the shards instead
    lanes: Annotated[int, Range(0, 2**16)] = 0
    buffer: Annotated[int, Range(1, 2**24)] = 4096  # size of the shuffle buffer in samples, over all lanes


@dataclass(frozen=True)
class Columns:
    """Column names of a table: what each column contains, and its name. `split` is optional in the table."""

    image: str = "image"
    caption: str = "caption"
    question: str = "question"
    answer: str = "answer"
    label: str = "label"  # the class of an image
    phrase: str = "phrase"  # referring expression
    box: str = "box"  # of the phrase: x1, y1, x2, y2 in pixels
    split: str = "split"

    @classmethod
    def parse(cls, text: str) -> Columns:
        """Columns from ``image=filename,caption=text``. Raises ValueError for a column that does not exist."""
        known = [field.name for field in fields(cls)]
        names: dict[str, str] = {}
        for part in filter(None, text.split(",")):
            column, equals, name = (word.strip() for word in part.partition("="))
            if column not in known or not equals or not name or column in names:
                raise ValueError(
                    f"columns: expected pairs such as image=filename,caption=text, of {', '.join(known)}, each once: "
                    f"got {part!r:.80}"
                )
            names[column] = name
        return replace(cls(), **names)


@dataclass(frozen=True)
class DataLayout:
    """Where a data set's rows have what: column names, and the folder that image names are relative to.

    `images_root`: "" for the folder of the data.
    """

    columns: Columns = Columns()
    images_root: str = ""


USUAL_LAYOUT = DataLayout()


@settings(kw_only=True)
class DataSettings:
    """How the data of a run, an evaluation or another command are laid out."""

    columns: str = ""  # column names of a table: image=filename,caption=text; empty: the usual names
    images_root: str = ""  # folder that image names are relative to; empty: that of the data

    def __post_init__(self) -> None:
        Columns.parse(self.columns)

    @property
    def layout(self) -> DataLayout:
        """Where the rows of the data have what."""
        return DataLayout(Columns.parse(self.columns), self.images_root)


Channels = tuple[float, float, float]
"""One value per channel: red, green, blue."""
Mean = Annotated[float, Range(-100, 100)]
Deviation = Annotated[float, Range(0, 100, "low")]

HALF: Channels = (0.5, 0.5, 0.5)
"""Mean and std that map pixels to [-1, 1] (ViT, ViLT, VLMo, BEiT-3)."""
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
"""Statistics of CLIP's training data (official code; ALBEF, BLIP and open_clip use the same)."""
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
"""Statistics of ImageNet (official code of MAE and CrossViT; of BEiT-3 for classification)."""


@settings("images")
class ImageSettings:
    """How images are resized and normalised.

    Values in [0, 1] become ``(x - mean) / std`` per channel. Frozen feature extractors use their own mean and std,
    whatever is set here.
    """

    shorter_side: Pixels = 384  # pixels; images are resized to this shorter side
    longer_ratio: Annotated[float, Range(1, 10)] = 1333 / 800  # longer side at most this many times shorter_side
    patch_size: PatchSize = 32  # height and width are rounded down to multiples of this
    mean: tuple[Mean, Mean, Mean] = HALF  # per-channel mean
    std: tuple[Deviation, Deviation, Deviation] = HALF  # per-channel standard deviation
    augment: bool = False  # RandAugment, 2 operations of magnitude 9, drawn per (seed, step, sample)
    # training only: the least share of the area in a random crop (RandomResizedCrop: 0.08), resized to the size of all
    # images; drawn per (seed, step, sample); 0: no random crop. Boxes and captions may name what lies outside
    random_crop: Fraction = 0.0
    square: bool = False  # resize to shorter_side x shorter_side, ignoring the aspect ratio (ViT)
    square_width: PixelsOrZero = 0  # with square: width, if it is not the height
    crop: PixelsOrZero = 0  # centre-crop a square of this size after resizing (CLIP); 0: no crop
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bicubic"  # Pillow's filter

    def __post_init__(self) -> None:
        require_at_most(self, "images", ("crop", "shorter_side"))
        if self.random_crop and self.size is None:
            raise ValueError(
                "images.random_crop needs images of one size: set images.square, or images.crop, or images.random_crop "
                "to 0"
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every image; None if it depends on each image's aspect ratio."""
        if self.crop:
            return self.crop, self.crop
        return (self.shorter_side, self.square_width or self.shorter_side) if self.square else None

    @property
    def augmented(self) -> bool:
        """Whether training images are changed at random."""
        return self.augment or self.random_crop > 0

    def without_augmentation(self) -> ImageSettings:
        """The settings of evaluation, and of features that are computed once."""
        return replace(self, augment=False, random_crop=0.0)

    @property
    def mean_std(self) -> tuple[Channels, Channels]:
        """(mean, std), each per channel."""
        return self.mean, self.std


BOXES = ("boxes", "hypercolumns")
"""Values of `Embedders.image` for features of a frozen CNN in fixed boxes: of its last map, or of all stages."""


TextEmbedder = Literal["own", "minilm", "minilm_causal", "minilm_words"]
"""Which text features a model's first block receives:

- ``own``: its own word embeddings;
- ``minilm``: contextual states of a frozen MiniLM (bidirectional);
- ``minilm_causal``: states of three of its layers under a causal mask, for models with a text decoder;
- ``minilm_words``: its context-free vector of each word.
"""


@settings("embedders")
class Embedders:
    """What feeds a model's first block: its own embeddings, or features of frozen networks."""

    # own: patch embeddings; grid: a frozen CNN's feature map; boxes: that map pooled in fixed boxes; hypercolumns: the
    # maps of all its stages pooled in them; PATH: detector features (.tsv, LMDB, or a folder of .npz)
    image: Text = "own"
    # boxes, hypercolumns: width and height as shares of the image's, and positions along each side; empty: 36 boxes
    scales: Annotated[tuple[tuple[PositiveFraction, PositiveFraction, BoxesPerSide], ...], MaxItems(64)] = ()
    feature_dim: Dim = 1280  # dimension of the region features read from PATH
    text: TextEmbedder = "own"  # own: word embeddings; others: features of a frozen MiniLM
    dropout: FractionBelowOne = 0.0  # dropout on frozen image and text features, before their projection
