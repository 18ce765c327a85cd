"""One stream, two streams or cross-attention: three ways to fuse text and image, trained on the same data and compared.

python examples/compare_fusions.py DATA OUT
"""

import sys
from typing import Any

import diptych

FUSIONS = {
    "visualbert.small": "one transformer over words and regions",
    "vilbert.small": "two streams that attend to each other",
    "albef.small": "text layers with cross-attention to the image",
}


def main(
    data: str, out: str, fusions: dict[str, str] = FUSIONS, steps: int = 240, gallery: int = 200, **settings: Any
) -> None:
    for recipe, description in fusions.items():
        folder = f"{out}/{recipe}"
        model = diptych.train(recipe, data=data, out=folder, steps=steps, **settings)
        scores = diptych.evaluate(folder, "retrieval", data=data, split="val", gallery=gallery, captions=1)
        size = sum(parameter.numel() for parameter in model.model.parameters())
        recall, chance = scores["text to image R@1"], scores["text to image R@1, chance"]
        print(f"{recipe:18} {description:48} {size:12,} parameters  R@1 {recall:.1%} (chance {chance:.1%})")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
