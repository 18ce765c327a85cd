"""Training on one's own photographs: python examples/train_on_your_photos.py PHOTOS OUT

PHOTOS: a folder with images and a table of captions (captions.csv: image, caption).
"""

import sys
from typing import Any

import diptych


def main(photos: Any, out: str, recipe: str = "clip.small", steps: int = 60, **settings: Any) -> None:
    # data: a path, or pairs from Python: [("dog.jpg", "a black dog"), (pil_image, ["a beach", "the sea"]), ...]
    model = diptych.train(recipe, data=photos, out=out, steps=steps, **settings)
    print(model)  # the same call, started again, resumes the run, or loads it if it has finished

    if isinstance(photos, str):  # a model means something beside chance, and above shuffled captions
        for shuffled in (False, True):
            scores = diptych.evaluate(out, "retrieval", data=photos, split="val", shuffle_captions=shuffled)
            print("shuffled captions" if shuffled else "captions", scores["text to image R@1"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
