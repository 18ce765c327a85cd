"""The table of all readers of untrusted files: valid inputs, where a mutated one is placed, and expected errors."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file

from diptych.checkpoints.read import WeightsError, load_state_dict
from diptych.cli import main
from diptych.cli.errors import is_user_error
from diptych.data.images.decode import decode
from diptych.data.regions.files import open_regions
from diptych.data.sources.base import BadSample, DataError, NoSplit
from diptych.data.sources.captions import open_captions
from diptych.data.sources.labelled import open_labelled
from diptych.data.sources.vqa import open_questions
from diptych.data.tokenizers.bpe import byte_letters
from diptych.data.tokenizers.tokenizer import read_vocabulary
from diptych.data.tokenizers.tokenizer_json import _SUPPORTED
from diptych.data.tokenizers.wordpiece import SPECIAL
from diptych.data.webdataset.indexed_shards import CaptionedShards, read_index
from diptych.data.webdataset.tar_samples import tar_samples
from diptych.utils.safe_pickle import NotPlain, read_plain
from tests.campaign.mutations import png_sealed, tar_sealed

OURS = (DataError, BadSample)
VALUES = 0.25 + np.arange(24, dtype=np.float32).reshape(4, 6)


@dataclass(frozen=True)
class Reader:
    """One reader of untrusted files.

    `place` writes a mutated input, with valid files around it, and returns the path for `read`. `errors`: the expected
    exceptions. `seal` repairs checksums, so that the code behind them is reached. `crafted`: inputs made by hand, which
    are read before the mutated ones.
    """

    name: str
    seeds: Sequence[bytes]
    place: Callable[[Path, bytes], Path]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = OURS
    tokens: Sequence[bytes] = ()
    seal: Callable[[bytes], bytes] | None = None
    crafted: Sequence[bytes] = ()


def under(name: str, folder: Path, data: bytes) -> Path:
    """Writes an input as a file of that name."""
    (folder / name).write_bytes(data)
    return folder / name


class Refused(Exception):
    """Raised if a command ends with its one-line error."""


def command(*words: str) -> None:
    """Runs a command line without output. Raises Refused for its one-line error; other exceptions propagate."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(list(words))
    if status:
        assert status == 2 and errors.getvalue().count("\n") >= 1, (status, errors.getvalue()[:300])
        raise Refused


# Images


def image_bytes(format: str, size: tuple[int, int] = (20, 14), mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(noise).convert(mode).save(out, format, **options)
    return out.getvalue()


def numeric(kind: str) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray((VALUES * 1000).astype(kind)).save(out, "TIFF")
    return out.getvalue()


def frames(format: str) -> bytes:
    return image_bytes(
        format, save_all=True, append_images=[Pillow.new("RGB", (20, 14), (k * 60, 3, 9)) for k in range(3)]
    )


EXIF = Pillow.Exif()
EXIF[0x0112] = 6
IMAGES: dict[str, Callable[[], list[bytes]]] = {
    "jpeg": lambda: [image_bytes("JPEG"), image_bytes("JPEG", progressive=True, exif=EXIF), image_bytes("JPEG", mode="CMYK"), image_bytes("JPEG", mode="L", quality=20), image_bytes("JPEG", restart_marker_rows=1)],
    "mpo": lambda: [frames("MPO")],
    "png": lambda: [image_bytes("PNG", exif=EXIF), image_bytes("PNG", mode="RGBA"), image_bytes("PNG", mode="P", transparency=3), image_bytes("PNG", mode="1"), image_bytes("PNG", mode="LA"), frames("PNG")],
    "gif": lambda: [image_bytes("GIF", mode="P", comment=b"made by hand"), frames("GIF")],
    "bmp": lambda: [image_bytes("BMP"), image_bytes("BMP", mode="P"), image_bytes("BMP", mode="1")],
    "tiff": lambda: [image_bytes("TIFF", compression=way) for way in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")] + [image_bytes("TIFF", mode="1", compression="group4"), image_bytes("TIFF", mode="RGBA"), image_bytes("TIFF", mode="CMYK"), *map(numeric, ("float32", "int32", "uint16", "int16")), frames("TIFF")],
    "webp": lambda: [image_bytes("WEBP", exif=EXIF), image_bytes("WEBP", lossless=True, mode="RGBA"), frames("WEBP")],
    "ppm": lambda: [image_bytes("PPM"), image_bytes("PPM", mode="L"), image_bytes("PPM", mode="1"), b"P3 2 2 9\n" + b"1 2 3 " * 4, b"P2 2 2 9\n1 2 3 4\n", b"P5 2 2 999\n" + bytes(range(8)), b"Pf 2 2 -1.0\n" + VALUES.tobytes()[:16], b"P6 2 2 99\n" + bytes(12)],
}  # fmt: skip


def images(format: str, folder: Path) -> Reader:
    def read(path: Path) -> None:
        for least in (None, 5):
            decode(path.read_bytes(), "x", min_side=least)

    seal = png_sealed if format == "png" else None
    return Reader(format, IMAGES[format](), partial(under, f"a.{format}"), read, seal=seal)


# Tars


def tar_of(format: int, members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 12
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tars(folder: Path) -> Reader:
    image, long = image_bytes("PNG"), "folder/" * 30
    members = {
        "0.png": image,
        "0.txt": b"a dog",
        f"{long}1.png": image,
        f"{long}1.json": b'{"caption": ["a cat", "b"]}',
    }
    seeds = [tar_of(form, members) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]

    def read(path: Path) -> None:
        for raw, _ in tar_samples(path):
            with contextlib.suppress(BadSample, NoSplit):
                decode(raw.picture, raw.where)
        read_index(path, bad=[])
        source = CaptionedShards(str(path), "")
        for i in range(len(source)):
            with contextlib.suppress(BadSample, NoSplit):
                source.image(i)

    tokens = (
        b"0.jpg",
        b"GNU.sparse.major",
        b"30 GNU.sparse.size=99999999999\n",
        b"22 size=-1536\n",
        b"path=../secret.jpg",
        b"x",
        b"L",
        b"S",
        b"g",
    )
    return Reader("tar", seeds, partial(under, "train-0.tar"), read, tokens=tokens, seal=tar_sealed)


# Tables and JSON of captions and questions


def beside_images(name: str, folder: Path, data: bytes) -> Path:
    for k in range(0 if (folder / "images").exists() else 3):
        (folder / "images").mkdir(exist_ok=True)
        under(f"images/{k}.png", folder, image_bytes("PNG"))
        under(f"images/COCO_val2014_{k:012}.jpg", folder, image_bytes("JPEG"))
    return under(name, folder, data)


def read_captions(path: Path) -> None:
    for split in ("train", "val"):
        with contextlib.suppress(BadSample, NoSplit):
            source = open_captions(str(path), split)
            for i in range(min(len(source), 4)):
                _ = source.captions(i), source.where(i), source.image(i)


def read_questions(path: Path) -> None:
    for split in ("train", "val"):
        with contextlib.suppress(BadSample, NoSplit):
            source = open_questions(str(path), split)
            for i in range(min(len(source), 4)):
                question = source.question(i)
                _ = source.where(i), source.image(question.image)


ROWS = [{"image": f"{k}.png", "caption": f"a dog, {k}", "question": "how many?", "answer": "2", "split": s} for k, s in enumerate(("train", "val", "train"))]  # fmt: skip
KARPATHY = {"images": [{"filename": f"{k}.png", "split": s, "sentences": [{"raw": "a dog"}]} for k, s in enumerate(("train", "val", "restval"))]}  # fmt: skip
COCO = {"images": [{"id": k, "file_name": f"{k}.png"} for k in range(3)], "annotations": [{"image_id": k, "caption": "a"} for k in range(3)]}  # fmt: skip
VQA = {"data_subtype": "val2014", "questions": [{"question_id": k, "image_id": k, "question": "how many?"} for k in range(3)]}  # fmt: skip
NOTES = {"annotations": [{"question_id": k, "answer_type": "number", "answers": [{"answer": str(k), "answer_id": j} for j in range(10)]} for k in range(3)]}  # fmt: skip
WORDS = tuple(w.encode() for w in ("images", "annotations", "split", "train", "val", "restval", "filename", "filepath", "sentences", "raw", "image_id", "id", "caption", "answers", "question_id", "image"))  # fmt: skip


def table(suffix: str) -> bytes:
    if suffix == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    joint = "\t" if suffix == "tsv" else ","
    cells = [list(ROWS[0]), *([f'"{x}"' for x in row.values()] for row in ROWS)]
    return "".join(joint.join(row) + "\n" for row in cells).encode()


def json_of(
    name: str, value: object, read: Callable[[Path], None], beside: tuple[str, object] | None = None
) -> Callable:
    def made(folder: Path) -> Reader:
        def place(folder: Path, data: bytes) -> Path:
            path = beside_images(name, folder, data)
            if beside:
                under(beside[0], folder, json.dumps(beside[1]).encode())
            return path.with_name(QUESTIONS) if beside and name != QUESTIONS else path

        return Reader(
            name, [json.dumps(value).encode(), json.dumps(value, indent=1).encode()], place, read, tokens=WORDS
        )

    return made


def tables(suffix: str, read: Callable[[Path], None], folder: Path) -> Reader:
    return Reader(suffix, [table(suffix)], partial(beside_images, f"rows.{suffix}"), read, tokens=WORDS)


QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


# Pickles, arrays, regions


def regions() -> dict[str, Any]:
    boxes = np.array([[0, 0, 40, 25], [10, 20, 80, 50]], dtype=np.float32)
    return {"image_h": 50, "image_w": 100, "num_boxes": 2, "boxes": boxes, "features": VALUES[:2]}


def pickles() -> list[bytes]:
    plain = {"none": None, "numbers": [1, -5, 2**40, 0.5], "text": "é", b"bytes": (b"\xff", True), 7: {"a": {}}}
    return [pickle.dumps(value, protocol) for value in (regions(), plain) for protocol in (0, 2, 4, 5)]


def in_database(folder: Path, data: bytes) -> Path:
    import lmdb

    path = folder / "x.lmdb"
    shutil.rmtree(path, ignore_errors=True)
    with lmdb.open(str(path), map_size=2**22) as opened, opened.begin(write=True) as transaction:
        transaction.put(b"17", data)
    return path


def load_17(path: Path) -> object:
    return open_regions(path).load("17")


def npy() -> list[bytes]:
    files = []
    for array in (VALUES[:2], np.asfortranarray(VALUES[:2]), VALUES[:2].astype(">f8")):
        out = io.BytesIO()
        np.save(out, array)
        files.append(out.getvalue())
    return files


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **{name: np.asarray(value) for name, value in regions().items()})
    return out.getvalue()


def in_npz(folder: Path, data: bytes) -> Path:
    """An .npz of regions whose features are these bytes of an .npy."""
    with zipfile.ZipFile(io.BytesIO(npz())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (folder / "npz").mkdir(exist_ok=True)
    under("npz/17.npz", folder, zipped(members | {"features.npy": data}))
    return folder / "npz"


def whole_npz(folder: Path, data: bytes) -> Path:
    (folder / "npz").mkdir(exist_ok=True)
    under("npz/17.npz", folder, data)
    return folder / "npz"


def region_rows() -> list[bytes]:
    from base64 import b64encode

    fields = regions()
    boxes, features = b64encode(fields["boxes"].tobytes()), b64encode(VALUES[:2].tobytes())
    six = [b"17", b"100", b"50", b"2", boxes, features]
    ten = [b"17", b"50", b"100", *[b64encode(bytes(8))] * 4, b"2", boxes, features]
    return [b"\t".join(six) + b"\n", b"\t".join(ten) + b"\n"]


def cifar(folder: Path, data: bytes) -> Path:
    (folder / "cifar").mkdir(exist_ok=True)
    under("cifar/meta", folder, pickle.dumps({b"fine_label_names": [b"cat", b"dog"]}, 2))
    under("cifar/train", folder, data)
    return folder / "cifar"


def cifar_rows() -> list[bytes]:
    data = np.zeros((10, 3072), np.uint8)
    return [pickle.dumps({b"data": data, b"fine_labels": [0, 1] * 5, b"filenames": [b"x.png"] * 10}, 2)]


def read_cifar(path: Path) -> None:
    for split in ("train", "val"):
        with contextlib.suppress(NoSplit):
            source = open_labelled(str(path), split)
            _ = source.image(0), source.label(0)


# Vocabularies


def tokenizer_jsons() -> tuple[list[bytes], list[bytes]]:
    """A valid tokenizer.json of either kind, and some with one setting of another type."""
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    tokens = [*SPECIAL, "a", "dog", "##s"]
    pieces: dict[str, Any] = {
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {token: i for i, token in enumerate(tokens)}},
        "normalizer": bert,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": None},
    }
    letters = [*byte_letters().values()]
    parts = [*letters, *(letter + "</w>" for letter in letters), "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    form = {"type": "BPE", "unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>", "merges": ["d o", "do g</w>"]}
    pairs = deepcopy({name: _SUPPORTED["BPE"][name] for name in ("normalizer", "pre_tokenizer")})
    pairs["pre_tokenizer"]["pretokenizers"][1] |= {"trim_offsets": True, "use_regex": True}
    pairs["model"] = form | {"vocab": {token: i for i, token in enumerate(parts)}}
    more = [{**pairs, "model": pairs["model"] | {"merges": merges}} for merges in (5, [["d", 1]])]
    contents = [{**pieces, "post_processor": None}, pairs, pieces, *more, {"model": {"type": ["BPE"]}}]
    files = [json.dumps(content).encode() for content in contents]
    return files[:2], files[2:]


def vocabularies(suffix: str, folder: Path) -> Reader:
    words = {w: i for i, w in enumerate(("<pad>", "<start>", "<end>", "<unk>", "dog", "a"))}
    seeds = {
        "txt": ["\n".join([*SPECIAL, "a", "dog", "##s"]).encode()],
        "json": [json.dumps({"word2idx": words, "idx": len(words)}).encode(), *tokenizer_jsons()[0]],
        "pkl": [pickle.dumps({"word2idx": words, "idx": 6}, protocol) for protocol in (0, 2, 4)],
    }
    contents = seeds[suffix] if suffix in seeds else [sentencepiece_model()]
    crafted = tokenizer_jsons()[1] if suffix == "json" else []

    def read(path: Path) -> None:
        vocabulary = read_vocabulary(path)
        vocabulary.subwords.decode(vocabulary.subwords.encode("a dog runs"))

    return Reader(f"vocabulary.{suffix}", contents, partial(under, f"words.{suffix}"), read, tokens=(*(s.encode() for s in SPECIAL), b"word2idx"), crafted=crafted)  # fmt: skip


def sentencepiece_model() -> bytes:
    import sentencepiece

    out = io.BytesIO()
    texts = [f"a dog and {n} cats run over the hill" for n in ("one", "two", "three", "seven", "many")] * 9
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, vocab_size=28, minloglevel=2
    )  # type: ignore[attr-defined]
    return out.getvalue()


# Checkpoints


def state() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(12.0).reshape(3, 4),
        "a.bias": torch.zeros(3, dtype=torch.bfloat16),
        "n": torch.tensor(3),
    }


def pth(legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": state(), "epoch": 3, "args": {"lr": 0.1}}, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def in_pth(folder: Path, data: bytes) -> Path:
    """PyTorch's archive, with these bytes as the pickle in it."""
    with zipfile.ZipFile(io.BytesIO(pth())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return under(
        "a.pth", folder, zipped({n: data if n.endswith("data.pkl") else content for n, content in members.items()})
    )


def pickle_of_pth() -> bytes:
    with zipfile.ZipFile(io.BytesIO(pth())) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def safetensors(folder: Path) -> Reader:
    save_file(state(), folder / "seed.safetensors", {"format": "pt"})
    seeds = [(folder / "seed.safetensors").read_bytes()]
    tokens = (b"F32", b"F64", b"BF16", b"I64", b"data_offsets", b"[0,0]", b"[0,99999999999]", b"shape")
    return Reader("safetensors", seeds, partial(under, "a.safetensors"), load_state_dict, (WeightsError,), tokens)


def npz_state(folder: Path) -> Reader:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, a=VALUES, b=np.zeros(3))
    return Reader("checkpoint.npz", [out.getvalue()], partial(under, "a.npz"), load_state_dict, (WeightsError,))


# Whole folders, read by the command line

TINY = ["pretrain", "vilt.tiny", "--model.dim", "16", "--model.depth", "1", "--model.num_heads", "2", "--model.mlp_dim", "32", "--model.text_length", "24", "--data", "scenes:20", "--batch_size", "4", "--steps", "3", "--log_every", "1", "--checkpoint_every", "2", "--workers", "0", "--precision", "fp32", "--device", "cpu"]  # fmt: skip


LARGE_SETTINGS = [
    (b'"dim": 16', b'"dim": 20000'),
    (b'"depth": 1', b'"depth": 10000000'),
    (b'"num_heads": 2', b'"num_heads": 0.5'),
    (b'"heads": [', b'"heads": [' + b'"itc", ' * 100_000),
    (b'"heads": [', b'"heads": ["a.b", "pop", "", '),
    (b'"labels": []', b'"labels": [' + b'"a", ' * 100_000 + b'"b"]'),
]


def run_folder(file: str, words: Callable[[Path], list[str]], folder: Path) -> Reader:
    """A finished run, one file of which is mutated, and the command that reads it. Other files are restored each time."""
    command(*TINY, "--out", str(folder / "kept"))

    def place(folder: Path, data: bytes) -> Path:
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(folder / "kept", folder / "run")
        return under(f"run/{file}", folder, data)

    def read(path: Path) -> None:
        command(*words(folder / "run"))

    seeds = [(folder / "kept" / file).read_bytes()]
    crafted: list[bytes] = []
    if file in ("run.json", "config.json"):  # without the digest, what was changed is read
        record = json.loads(seeds[0])
        del record["digest"]
        seeds.append(json.dumps(record, indent=1).encode())
        crafted = [seeds[1].replace(*pair) for pair in LARGE_SETTINGS]
        assert file == "run.json" or seeds[1] not in crafted, "nothing was changed"
    tokens = (
        b"dim",
        b"depth",
        b"grid",
        b"data",
        b"scenes:99",
        b"vocabulary",
        b"recipe",
        b"step",
        b"itm",
        b"training_state",
        b"F32",
    )
    return Reader(f"run/{file}", seeds, place, read, (Refused,), tokens, crafted=crafted)


def again(run: Path) -> list[str]:
    return [*TINY, "--out", str(run)]


def scored(run: Path) -> list[str]:
    return ["evaluate", str(run), "--task", "retrieval", "--data", "scenes:20", "--split", "val", "--gallery", "4", "--workers", "0", "--device", "cpu"]  # fmt: skip


def matched(run: Path) -> list[str]:
    """The losses of training, whose settings only run.json has."""
    return ["matching" if word == "retrieval" else word for word in scored(run)]


def hugging_face(file: str, folder: Path) -> Reader:
    """Imports a folder of Hugging Face's ViT, one file of which is mutated."""
    transformers = __import__("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16, num_labels=3)  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder / "kept")

    def place(folder: Path, data: bytes) -> Path:
        shutil.rmtree(folder / "hf", ignore_errors=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        shutil.copytree(folder / "kept", folder / "hf")
        return under(f"hf/{file}", folder, data)

    def read(path: Path) -> None:
        command("import", "vit", str(folder / "hf"), "--out", str(folder / "out"))

    tokens = (b"hidden_size", b"num_attention_heads", b"hidden_act", b"gelu", b"id2label", b"image_size", b"model_type")
    return Reader(f"hf/{file}", [(folder / "kept" / file).read_bytes()], place, read, (Refused,), tokens)


LARGE = [
    b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x01\x85R.",
    b"\x80\x02ccollections\nOrderedDict\n(J\xff\xff\xff\x7fK\0tR.",
]
"""Pickles of a hundred bytes that ask for gigabytes."""


def plain(name: str, seeds: Callable[[], Sequence[bytes]], place: Callable, read: Callable, *errors: type[Exception]) -> Callable:  # fmt: skip
    return lambda folder: Reader(name, seeds(), place, read, errors or OURS)


QUICK: dict[str, Callable[[Path], Reader]] = {
    **{name: partial(images, name) for name in IMAGES},
    "tar": tars,
    **{f"captions.{suffix}": partial(tables, suffix, read_captions) for suffix in ("csv", "tsv", "jsonl")},
    **{f"questions.{suffix}": partial(tables, suffix, read_questions) for suffix in ("csv", "jsonl")},
    "karpathy": json_of("dataset_tiny.json", KARPATHY, read_captions),
    "coco": json_of("captions_train2014.json", COCO, read_captions),
    "vqa.questions": json_of(QUESTIONS, VQA, read_questions, (ANNOTATIONS, NOTES)),
    "vqa.annotations": json_of(ANNOTATIONS, NOTES, read_questions, (QUESTIONS, VQA)),
    "pickle": plain("pickle", pickles, partial(under, "x.pkl"), lambda path: read_plain(path.read_bytes()), NotPlain),
    "lmdb": plain("lmdb", lambda: pickles()[:4], in_database, load_17),
    "npy": plain("npy", npy, in_npz, load_17),
    "npz": plain("npz", lambda: [npz()], whole_npz, load_17),
    "regions.tsv": plain("regions.tsv", region_rows, partial(under, "x.tsv"), load_17, *OURS, KeyError),
    "cifar": plain("cifar", cifar_rows, cifar, read_cifar),
    **{f"vocabulary.{suffix}": partial(vocabularies, suffix) for suffix in ("txt", "json", "pkl", "spm")},
    "pth": plain("pth", lambda: [pth(), pth(legacy=True)], partial(under, "a.pth"), load_state_dict, WeightsError),
    "pth.pickle": lambda folder: Reader(
        "pth.pickle", [pickle_of_pth()], in_pth, load_state_dict, (WeightsError,), crafted=LARGE
    ),
    "safetensors": safetensors,
    "checkpoint.npz": npz_state,
}
COMMANDS: dict[str, Callable[[Path], Reader]] = {
    "config.json": partial(run_folder, "config.json", scored),
    "run.json": partial(run_folder, "run.json", matched),
    "run.json, continued": partial(run_folder, "run.json", again),
    "metrics.jsonl": partial(run_folder, "metrics.jsonl", again),
    "checkpoint.safetensors": partial(run_folder, "checkpoint.safetensors", again),
    "model.safetensors": partial(run_folder, "model.safetensors", scored),
    "hf config.json": partial(hugging_face, "config.json"),
    "hf model.safetensors": partial(hugging_face, "model.safetensors"),
}
READERS = QUICK | COMMANDS
assert is_user_error(DataError())  # the errors that commands may end with
