"""Published checkpoints imported and evaluated at the command line: the ranking equals that of the publisher's code."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.batch import Batch, Image, Regions, Text
from diptych.cli import main
from diptych.config.data import CLIP_MEAN, CLIP_STD, ImageSettings
from diptych.data.images.transforms import stack, transform
from diptych.data.tokenizers.tokenizer import CLIP as CLIP_VOCABULARY
from diptych.data.tokenizers.tokenizer import Tokenizer, vocabulary
from diptych.models.coca import checkpoint as coca
from diptych.runs.load_model import load_model

CAPTIONS = ("a red square", "Two dogs, running!", "the sea & the sky", "somebody's bicycle")
EXACT = ["--workers", "0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four images of two shapes, each with a caption."""
    monkeypatch.setattr("diptych.runs.evaluate.report.write", lambda *_: None)  # slow, and not needed here
    folder, draw = tmp_path / "photographs", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for i, caption in enumerate(CAPTIONS):
        size = (40, 56, 3) if i % 2 else (48, 40, 3)
        Pillow.fromarray(draw.integers(0, 256, size, np.uint8)).save(folder / f"{i}.png")
        rows.append((f"{i}.png", caption, "val"))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return folder


def predictions(run: Path, task: str) -> list[dict[str, Any]]:
    (path,) = run.glob(f"evaluate-{task}-*/predictions.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def retrieved(run: Path) -> list[list[int]]:
    """For each caption the indices of the images, by file name, in the order retrieved."""
    return [[int(where.rpartition("(")[2][0]) for where in row["retrieved"]] for row in predictions(run, "retrieval")]


def pixels_of(folder: Path, side: int) -> torch.Tensor:
    images = ImageSettings(shorter_side=side, square=True, mean=CLIP_MEAN, std=CLIP_STD)
    return stack([transform(Pillow.open(folder / f"{i}.png"), images) for i in range(len(CAPTIONS))], images).pixels


@pytest.mark.slow
@torch.no_grad()
def test_hugging_face_s_clip_ranks_as_their_class(photographs: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    both = {"hidden_act": "quick_gelu", "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 64}
    words = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config={**both, **words, "intermediate_size": 64, "max_position_embeddings": 16},
        vision_config={**both, "intermediate_size": 64, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if name != "logit_scale":
            torch.nn.init.normal_(parameter, std=2.0 if "token_embedding" in name else 0.3)
    theirs.save_pretrained(tmp_path / "published")

    run = tmp_path / "run"
    assert main(["import", "clip", str(tmp_path / "published" / "model.safetensors"), "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--task", "retrieval", "--data", str(photographs), *EXACT]) == 0
    ids = Tokenizer(16, vocabulary(CLIP_VOCABULARY)).encode(list(CAPTIONS)).ids
    wanted = theirs(input_ids=ids, pixel_values=pixels_of(photographs, 32)).logits_per_text
    order = wanted.argsort(1, descending=True).tolist()
    assert retrieved(run) == order and len({tuple(row) for row in order}) > 1


@pytest.mark.slow
@torch.no_grad()
def test_a_hugging_face_folder_keeps_its_heads_activation_and_preprocessing(photographs: Path, tmp_path: Path):
    """Two heads of dim 32, plain GELU, centre crops: the ranking equals that of their processor and class."""
    transformers = pytest.importorskip("transformers")
    both = {
        "hidden_act": "gelu",
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 64,
        "layer_norm_eps": 1e-3,
    }
    words = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(
        text_config={**both, **words, "intermediate_size": 64},
        vision_config={**both, "intermediate_size": 64, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(1)
    theirs = transformers.CLIPModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if name != "logit_scale":
            torch.nn.init.normal_(parameter, std=2.0 if "token_embedding" in name else 0.3)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, image_mean=[0.2, 0.4, 0.6], resample=2
    )
    for part in (theirs, processor):
        part.save_pretrained(tmp_path / "published")

    run = tmp_path / "run"
    assert main(["import", "clip", str(tmp_path / "published"), "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--task", "retrieval", "--data", str(photographs), *EXACT]) == 0
    ids = Tokenizer(16, vocabulary(CLIP_VOCABULARY)).encode(list(CAPTIONS)).ids
    images = [Pillow.open(photographs / f"{i}.png") for i in range(len(CAPTIONS))]
    pixels = processor(images, return_tensors="pt")["pixel_values"].float()
    order = theirs(input_ids=ids, pixel_values=pixels).logits_per_text.argsort(1, descending=True).tolist()
    assert retrieved(run) == order and len({tuple(row) for row in order}) > 1


@pytest.mark.slow
@torch.no_grad()
def test_open_clip_s_coca_retrieves_and_captions(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sizes: dict[str, Any] = {
        "dim": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64, "patch_size": 16, "grid": (2, 2), "num_queries": 3, "pool_num_heads": 1,
        "text_dim": 64, "text_depth": 1, "text_num_heads": 1, "text_mlp_dim": 64, "vocab_size": 49408, "text_length": 16,
        "decoder_depth": 1, "decoder_num_heads": 1, "decoder_mlp_dim": 64, "embed_dim": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    step = coca.build(sizes, "pretraining", {}).eval()
    for parameter in step.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    official = coca.names(sizes, "pretraining").to_official(dict(step.state_dict()))
    torch.save({"state_dict": official}, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"vision_cfg": {"attn_pooler_heads": 1}}))

    run, config = tmp_path / "run", str(tmp_path / "open_clip_config.json")
    words = ["import", "coca", str(tmp_path / "open_clip_pytorch_model.bin"), "--config", config, "--out", str(run)]
    assert main(words) == 0
    for task in ("retrieval", "captioning"):
        more = ["--max_length", "6"] if task == "captioning" else []
        assert main(["evaluate", str(run), "--task", task, "--data", str(photographs), *EXACT, *more]) == 0
    output = capsys.readouterr().out
    assert "image to text R@1" in output and "CIDEr-D" in output

    text = Tokenizer(16, vocabulary(CLIP_VOCABULARY)).encode(list(CAPTIONS))
    image = Image.from_full(pixels_of(photographs, 32))
    views = step.views(Batch(0, 0, torch.arange(4), image=image, text=text))  # type: ignore[operator]
    features = views.features("itc")
    order = (features.text @ features.image.T).argsort(1, descending=True).tolist()
    assert retrieved(run) == order and len({tuple(row) for row in order}) > 1
    assert all(row["caption"] for row in predictions(run, "captioning"))


@torch.no_grad()
@pytest.mark.parametrize("system", ["scan", "vsepp"])
def test_word_vocabulary_models_rank_with_their_own_vocabulary(system: str, photographs: Path, tmp_path: Path):
    """The official files: the state dicts of both encoders, and the word vocabulary as JSON or as a pickle."""
    listed = [
        "<pad>",
        "<start>",
        "<end>",
        "<unk>",
        "a",
        "red",
        "square",
        "two",
        "dogs",
        "running",
        ",",
        "!",
        "the",
        "sea",
        "'s",
    ]
    fields = {"word2idx": {word: i for i, word in enumerate(listed)}, "idx": len(listed)}
    by_hand = [[1, 4, 5, 6, 2], [1, 7, 8, 10, 9, 11, 2], [1, 12, 13, 3, 12, 3, 2], [1, 3, 14, 3, 2]]
    words = tmp_path / ("f30k_precomp_vocab.json" if system == "scan" else "f30k_precomp_vocab.pkl")
    words.write_bytes(json.dumps(fields).encode() if system == "scan" else pickle.dumps(fields))
    torch.manual_seed(0)
    image = torch.nn.Linear(6, 8)
    text = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(len(listed), 5), "rnn": torch.nn.GRU(5, 8, bidirectional=system == "scan")}
    )
    states = [{f"fc.{name}": x for name, x in image.state_dict().items()}, dict(text.state_dict())]
    torch.save({"epoch": 3, "model": states}, tmp_path / "model_best.pth.tar")
    regions, draw = tmp_path / "regions", np.random.default_rng(1)
    regions.mkdir()
    arrays = draw.normal(size=(len(CAPTIONS), 3, 6)).astype(np.float32)
    for i, features in enumerate(arrays):
        boxes = np.array([[0, 0, 1, 1, 1, 1]] * 3, np.float32)
        np.savez(regions / f"{i}.npz", norm_bb=boxes, features=features)

    run, command = tmp_path / "run", ["import", system, str(tmp_path / "model_best.pth.tar")]
    assert main([*command, "--vocabulary", str(words), "--regions", str(regions), "--out", str(run)]) == 0
    words.unlink()
    assert main(["evaluate", str(run), "--task", "retrieval", "--data", str(photographs), *EXACT]) == 0
    step = load_model(run, torch.device("cpu")).module
    model: Any = step.model
    ranking = []
    for ids in by_hand:  # one by one: no padding
        states = model.encode_text(Text(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)))
        inputs = Regions(torch.from_numpy(arrays), torch.zeros(4, 3, 5), torch.ones(4, 3, dtype=torch.bool))
        ranking.append(model.similarity(model.encode_image(inputs), states)[:, 0].argsort(descending=True).tolist())
    assert retrieved(run) == ranking and len({tuple(row) for row in ranking}) > 1
