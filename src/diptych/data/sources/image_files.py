"""Images in files of a folder: what the sources of captions, questions, phrases and classes share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Pillow

from diptych.data.images.decode import load_image, read_image_file


class ImageFiles:
    """One split of the images in `files`, named relative to the folder `root`.

    Args:
        min_side: large JPEGs may be decoded at a smaller scale whose shorter side is at least this many pixels.
        division: one line on how the data was divided into splits.
    """

    def __init__(self, root: Path, split: str, files: Sequence[str], min_side: int | None = None, division: str = ""):
        self.name, self.root, self.split = root.name, root, split
        self.files, self.min_side, self.division = files, min_side, division

    def image(self, index: int) -> Pillow.Image:
        """The decoded image `index`, mode RGB, upright. Raises BadSample."""
        return load_image(self.root / self.files[index], self.min_side)

    def file(self, index: int) -> bytes:
        """Bytes of image file `index`. Raises BadSample."""
        return read_image_file(self.root / self.files[index])

    def stem(self, index: int) -> str:
        """File name of the image without its suffix."""
        return Path(self.files[index]).stem
