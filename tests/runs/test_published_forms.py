"""Import of published checkpoints in layouts that today's official code no longer writes.

ImageNet-21k ViTs with a representation layer, CoCas with equal dims, ViLBERT's first release with weight-normed answers.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Image
from diptych.checkpoints.read import load_state_dict
from diptych.cli import main
from diptych.inference.saved_model import read_config
from diptych.models.coca import checkpoint as coca
from diptych.models.importing import load_official
from diptych.models.vit.model import ViT
from diptych.runs.load_model import load_model
from tests.parity.goldens import GOLDEN_CASES


def command(system: str, state: dict[str, Tensor], out: Path, config: Path | None = None) -> int:
    torch.save(state, out.with_suffix(".pth"))
    settings = ["--config", str(config)] if config else []
    return main(["import", system, str(out.with_suffix(".pth")), "--out", str(out), *settings])


def exported(run: Path) -> dict[str, Tensor]:
    assert main(["export", str(run), "--to", "official", "--out", str(run.with_suffix(".back.pth"))]) == 0
    return load_state_dict(run.with_suffix(".back.pth"))


def in21k(dim: int = 48, representation: int = 20, num_classes: int = 9) -> dict[str, Tensor]:
    """The golden ViT's encoder with a representation layer of another dim and a classifier."""
    state = torch.load(GOLDEN_CASES / "vit" / "checkpoint.pth", weights_only=True)
    generator = torch.Generator().manual_seed(3)
    shapes = {"pre_logits.fc.weight": (representation, dim), "pre_logits.fc.bias": (representation,)}
    shapes |= {"head.weight": (num_classes, representation), "head.bias": (num_classes,)}
    return state | {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@torch.no_grad()
def test_a_vit_of_imagenet_21k_classifies_through_its_representation_layer(tmp_path: Path):
    state = in21k()
    config = GOLDEN_CASES / "vit" / "config.json"
    assert command("vit", state, tmp_path / "run", config) == 0
    step: Any = load_model(tmp_path / "run", torch.device("cpu")).module
    bare = (
        load_official("vit", GOLDEN_CASES / "vit" / "checkpoint.pth", num_heads=4).build().eval().get_submodule("model")
    )
    assert isinstance(bare, ViT)
    rows, columns = bare.patches.grid
    patch = json.loads(config.read_text())["patch_size"]
    image = random_image(rows * patch, columns * patch)
    first = bare.encode_image(image).first()  # the class token after the last norm
    hidden = torch.tanh(first @ state["pre_logits.fc.weight"].T + state["pre_logits.fc.bias"])
    expected = hidden @ state["head.weight"].T + state["head.bias"]
    torch.testing.assert_close(step.model.classify(image), expected, rtol=1e-5, atol=1e-5)
    back = exported(tmp_path / "run")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def random_image(height: int, dim: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, height, dim, generator=generator)
    return Image(pixels, torch.tensor([[height, dim]] * 2))


def test_jax_names_and_a_file_without_a_classifier_are_read(tmp_path: Path):
    state = in21k()
    encoder = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    assert command("vit", encoder, tmp_path / "encoder", GOLDEN_CASES / "vit" / "config.json") == 0
    assert read_config(tmp_path / "encoder").model.representation == 20  # type: ignore[union-attr]
    named = {"pre_logits/kernel": state["pre_logits.fc.weight"].T, "pre_logits/bias": state["pre_logits.fc.bias"]}
    from diptych.models.huggingface.layouts import to_official_names

    official, _ = to_official_names("vit", {"embedding/kernel": torch.ones(4, 4, 3, 8), **named})
    assert torch.equal(official["pre_logits.fc.weight"], state["pre_logits.fc.weight"])


def test_half_a_representation_layer_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = in21k()
    del state["pre_logits.fc.bias"]
    assert command("vit", state, tmp_path / "run", GOLDEN_CASES / "vit" / "config.json") == 2
    assert "pre_logits.fc.bias" in capsys.readouterr().err


WIDE: dict[str, Any] = dict(
    dim=16, depth=1, num_heads=2, mlp_dim=24, patch_size=8, grid=(2, 2), num_queries=3, pool_num_heads=2, text_dim=16, text_depth=1,
    text_num_heads=2, text_mlp_dim=20, vocab_size=30, text_length=7, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=20,
    embed_dim=10,
)  # fmt: skip


@torch.no_grad()
def test_a_coca_of_equal_dims_equals_torch_s_attention(tmp_path: Path):
    """torch has one in_proj_weight for equal dims, and three weights otherwise."""
    torch.manual_seed(5)
    pool = nn.MultiheadAttention(16, 2, kdim=16, vdim=16, batch_first=True)
    assert pool.in_proj_weight is not None
    step = coca.build(WIDE, "pretraining", {})
    state = {name: tensor.contiguous() for name, tensor in coca.names(WIDE, "").to_official(step.state_dict()).items()}
    theirs = {f"visual.attn_pool.attn.{name}": tensor.clone() for name, tensor in pool.state_dict().items()}
    assert theirs.keys() <= state.keys()
    (tmp_path / "config.json").write_text(json.dumps({"vision_cfg": {"attn_pooler_heads": 2}, "num_heads": 2}))
    assert command("coca", state | theirs, tmp_path / "run", tmp_path / "config.json") == 0
    ours: Any = load_model(tmp_path / "run", torch.device("cpu")).module
    tokens = ours.model.image(random_image(16, 16))
    queries, context = ours.model.pool.query.expand(2, -1, -1), tokens.to_padded()
    norm, context_norm = ours.model.pool.norm, ours.model.pool.context_norm
    expected, _ = pool(norm(queries), context_norm(context), context_norm(context), need_weights=False)
    torch.testing.assert_close(ours.model.pool(tokens).to_padded(), expected, rtol=1e-5, atol=1e-6)
    back = exported(tmp_path / "run")
    assert back.keys() == state.keys() and all(torch.equal(back[n], t) for n, t in (state | theirs).items())


class OfficialClassifier(nn.Module):
    """vilbert_beta's answer head: two linear layers with weight norm over the whole matrix, ReLU and dropout between."""

    def __init__(self, inputs: int, mlp_dim: int, num_answers: int):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # the newer form has other names
            first, last = (
                nn.utils.weight_norm(nn.Linear(*sizes), dim=None)  # type: ignore[arg-type]
                for sizes in ((inputs, mlp_dim), (mlp_dim, num_answers))
            )
        self.main = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), last)


@pytest.mark.slow
@torch.no_grad()
def test_vilbert_s_weight_normed_head_equals_the_official_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(2)
    head = OfficialClassifier(40, 80, 7).eval()
    for layer in (0, 3):
        head.get_parameter(f"main.{layer}.weight_g").mul_(1.7)  # training has changed it
    state = load_state_dict(GOLDEN_CASES / "vilbert_pretrain" / "checkpoint.pth")
    state |= {f"vil_prediction.{name}": tensor.clone() for name, tensor in head.state_dict().items()}
    config = GOLDEN_CASES / "vilbert_pretrain" / "config.json"
    assert command("vilbert", state, tmp_path / "run", config) == 0
    output = capsys.readouterr().out
    assert "heads.vqa" in output
    assert all(f"vil_prediction.main.{layer}.weight: computed from its weight norm" in output for layer in (0, 3))
    settings = json.loads(config.read_text())
    step = load_official("vilbert", tmp_path / "run.pth", settings=settings).build().eval()
    ours, pooled = step.get_submodule("heads.vqa"), torch.randn(5, 40)
    assert torch.equal(ours(pooled), head.main(pooled))
    back = exported(tmp_path / "run")
    assert back.keys() == state.keys()
    again = OfficialClassifier(40, 80, 7).eval()
    again.load_state_dict({n.removeprefix("vil_prediction."): t for n, t in back.items() if n.startswith("vil_pred")})
    assert torch.equal(again.main(pooled), head.main(pooled))
    assert not torch.equal(back["vil_prediction.main.0.weight_v"], state["vil_prediction.main.0.weight_v"])


@pytest.mark.quick("change0-*", "change2-*")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight_g": None},
            "missing weights: vil_prediction.main.0.weight_g, which belongs to vil_prediction.main.0.weight_v",
        ),
        (
            {"weight_g": torch.ones(80, 1)},
            "vil_prediction.main.0.weight_g is (80, 1); expected one element",
        ),
        ({"weight_v": torch.zeros(80, 40)}, "vil_prediction.main.0.weight_v is 0 everywhere"),
        ({"weight_v": torch.full((80, 40), np.nan)}, "NaN or infinite weights: vil_prediction.main.0.weight_v"),
    ],
)
@pytest.mark.slow
def test_invalid_weight_norms_are_an_error(change: dict[str, Any], message: str, tmp_path: Path, capsys):
    state = load_state_dict(GOLDEN_CASES / "vilbert_pretrain" / "checkpoint.pth")
    head = {f"vil_prediction.{name}": tensor for name, tensor in OfficialClassifier(40, 80, 7).state_dict().items()}
    head |= {f"vil_prediction.main.0.{name}": tensor for name, tensor in change.items()}
    state |= {name: tensor.detach() for name, tensor in head.items() if tensor is not None}
    assert command("vilbert", state, tmp_path / "run", GOLDEN_CASES / "vilbert_pretrain" / "config.json") == 2
    assert message in capsys.readouterr().err


def test_the_newer_names_of_weight_norm_are_read():
    from diptych.checkpoints.weight_norm import fold_weight_norm, unfold_weight_norm

    torch.manual_seed(4)
    linear = nn.Linear(6, 5)
    newer = nn.utils.parametrizations.weight_norm(linear, dim=None)  # type: ignore[arg-type]
    with torch.no_grad():
        newer.parametrizations.weight.original0.mul_(3)  # type: ignore[union-attr]
    plain = fold_weight_norm(newer.state_dict(), ["weight"])
    assert plain.keys() == {"weight", "bias"} and torch.equal(plain["weight"], linear.weight)
    assert torch.equal(fold_weight_norm(unfold_weight_norm(plain, ["weight"]), ["weight"])["weight"], plain["weight"])


def downstream() -> dict[str, Tensor]:
    """A file of vilbert_beta after fine-tuning: pre-training heads and those of all tasks, under DataParallel's names."""
    torch.manual_seed(6)
    state = load_state_dict(GOLDEN_CASES / "vilbert_pretrain" / "checkpoint.pth")
    head = OfficialClassifier(40, 80, 7).state_dict()
    state |= {f"vil_prediction.{name}": tensor.detach() for name, tensor in head.items()}
    image_dim = len(state["bert.v_embeddings.image_embeddings.bias"])
    text_dim = len(state["bert.embeddings.LayerNorm.bias"])
    for name, dim in (("vil_logit", 40), ("vision_logit", image_dim), ("linguisic_logit", text_dim)):
        state |= {f"{name}.{part}": tensor.detach() for part, tensor in nn.Linear(dim, 1).state_dict().items()}
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head", "ours"),
    [
        ("vqa", "vil_prediction.main.3.bias", "head.main.3.bias"),
        ("retrieval", "vil_logit.weight", "rank.linear.weight"),
        ("grounding", "vision_logit.weight", "head.linear.weight"),
    ],
)
def test_a_downstream_file_is_imported_for_its_task_and_given_back(task: str, head: str, ours: str, tmp_path: Path):
    state = downstream()
    torch.save(state, tmp_path / "file.pth")
    config = str(GOLDEN_CASES / "vilbert_pretrain" / "config.json")
    arguments = ["import", "vilbert", str(tmp_path / "file.pth"), "--config", config, "--task", task]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    loaded = load_model(tmp_path / "run", torch.device("cpu"))
    assert loaded.saved.task == task
    weights = loaded.module.state_dict()
    assert torch.equal(weights[ours], state[f"module.{head}"])
    assert not any(name.startswith("heads.") for name in weights)
    back = exported(tmp_path / "run")
    assert {f"module.{name}" for name in back} == state.keys()
    assert all(torch.equal(x, state[f"module.{name}"]) for name, x in back.items() if "weight_" not in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "task", "message"),
    [
        ("vilbert", "caption", "--task caption: expected one of vqa, retrieval, grounding"),
        ("vilbert", "vqa", "--task vqa: the file has no weights vil_prediction.main.*"),
        ("vit", "vqa", "--task vqa: its files have the heads of one task"),
    ],
)
def test_a_task_that_a_file_has_no_head_for_is_an_error(system: str, task: str, message: str, tmp_path: Path, capsys):
    golden = GOLDEN_CASES / {"vit": "vit", "vilbert": "vilbert_pretrain"}[system]
    arguments = ["import", system, str(golden / "checkpoint.pth"), "--config", str(golden / "config.json")]
    assert main([*arguments, "--task", task, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
