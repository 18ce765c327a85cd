"""A trained model on one's own photographs: python examples/quickstart.py RUN PHOTOS

RUN: a run folder, or a Hugging Face folder (CLIP, BLIP, ViLT, ViT). PHOTOS: an image, a folder or a glob.
"""

import sys

import diptych


def main(run: str, photos: str) -> None:
    model = diptych.load(run)  # a run, an imported checkpoint, or a Hugging Face folder
    print(model)  # what it can do
    if model.can("caption"):
        print(model.caption(photos, num_beams=3))
    if model.can("embed_texts"):
        images = model.embed_images(photos)  # (n, d): unit vectors, in natural order of the files
        texts = model.embed_texts(["a dog on the beach", "a city at night"])
        print(images @ texts.T)  # cosines
    if model.can("itm"):
        print(model.score(photos, ["a dog on the beach"], method="itm"))  # probability that the pair matches
    if model.can("answer"):
        print(model.answer(photos, "what is in the picture?"))  # an answer and its probability for each photograph


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
