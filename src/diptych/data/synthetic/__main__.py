"""Contact sheet of synthetic scenes: ``python -m diptych.data.synthetic --out DIR --n 16`` writes DIR/scenes.png."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from diptych.data.synthetic import language
from diptych.data.synthetic.source import Scenes
from diptych.data.synthetic.world import SPLITS
from diptych.utils.terminal import echo

_CELL = (760, 225)


def sheet(scenes: Scenes) -> Pillow.Image:
    """All images of `scenes`, two per row, enlarged, with their captions and questions."""
    width, height = _CELL
    page = Pillow.new("RGB", (2 * width, (len(scenes) + 1) // 2 * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for index in range(len(scenes)):
        x, y = index % 2 * width + 8, index // 2 * height + 8
        image = scenes.image(index)
        image.thumbnail((120, 120))
        page.paste(image.resize((image.width * 3 // 2, image.height * 3 // 2), Pillow.Resampling.BICUBIC), (x, y))
        scene = scenes.scene(index)
        captions = [caption.text for caption in language.captions(scene)]
        questions = [f"{question.text}  {question.answer}" for question in language.questions(scene)]
        for row, text in enumerate([*captions, "", *questions]):
            pen.text((x + 190, y + 19 * row), text, fill="black" if row < len(captions) else (20, 70, 150), font=font)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m diptych.data.synthetic", description="Draw a sheet of scenes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write scenes.png to")
    parser.add_argument("--n", type=int, default=16, help="how many scenes")
    parser.add_argument("--split", choices=list(SPLITS), default="val")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "scenes.png"
    sheet(Scenes(args.split, args.n, args.seed)).save(path)
    echo(path)


if __name__ == "__main__":
    main()
