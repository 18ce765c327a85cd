"""Export of imported checkpoints: bit for bit in the official layout, and equal outputs of Hugging Face's classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from torch import nn

import diptych
from diptych.batch import Image, Text
from diptych.checkpoints.read import load_state_dict
from diptych.cli import main
from diptych.data.images.transforms import transform
from diptych.inference.folder import write_config
from diptych.inference.saved_model import RunError, read_config
from diptych.inference.tokenizer import tokenizer_of
from diptych.runs.export import Exported, export
from diptych.runs.import_checkpoint import import_checkpoint
from diptych.runs.load_model import load_model
from diptych.runs.pretrain import build
from diptych.runs.recipes import recipe, with_settings
from tests.parity.goldens import GOLDEN_CASES
from tests.runs.tiny_runs import write_model


@pytest.fixture(params=[("vit", "vit"), ("vilt", "vilt_pretrain")], ids=lambda p: p[1])
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    system, case = request.param
    import_checkpoint(system, GOLDEN_CASES / case / "checkpoint.pth", tmp_path / "run", 4, None, None)
    return tmp_path / "run", GOLDEN_CASES / case / "checkpoint.pth"


@pytest.mark.parametrize("to", ["official", "safetensors"])
def test_the_official_layout_is_exported_bit_for_bit(imported: tuple[Path, Path], to: Any, tmp_path: Path):
    run, original = imported
    out = tmp_path / ("x.pth" if to == "official" else "x.safetensors")
    assert export(run, to, out) == Exported([], {"num_heads": 4})
    before, after = load_state_dict(original), load_state_dict(out)
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype, name
    if to == "official":
        raw, again = (torch.load(path, weights_only=True) for path in (original, out))
        assert [k for k in raw if k in ("state_dict", "model")] == [k for k in again if k in ("state_dict", "model")]


@pytest.mark.slow
@torch.no_grad()
def test_hugging_face_s_vit_gives_the_same_logits(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    import_checkpoint("vit", GOLDEN_CASES / "vit" / "checkpoint.pth", tmp_path / "run", 4, None, None)
    assert export(tmp_path / "run", "hf", tmp_path / "hf") == Exported([], {})
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / "hf").eval()
    ours = official_step("vit", "vit").model
    rows, columns = ours.patches.grid
    pixels = torch.randn(2, 3, rows * ours.patches.patch_size, columns * ours.patches.patch_size)
    torch.testing.assert_close(ours.classify(Image.from_full(pixels)), theirs(pixels).logits, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.slow
def test_hugging_face_s_vilt_gives_the_same_mlm_logits(tmp_path: Path):
    """The LayerNorm eps of the text embeddings is set by hand: their config has none for it."""
    transformers = pytest.importorskip("transformers")
    import_checkpoint("vilt", GOLDEN_CASES / "vilt_pretrain" / "checkpoint.pth", tmp_path / "run", 4, None, None)
    export(tmp_path / "run", "hf", tmp_path / "hf")
    theirs = transformers.ViltForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    for name, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm) and ("text_embeddings" in name or "mlm_score" in name):
            module.eps = 1e-12
    step = official_step("vilt", "vilt_pretrain")
    model, patches = step.model, step.model.patches
    rows, columns = (side * patches.patch_size for side in patches.grid)
    pixels, ids = torch.randn(2, 3, rows, columns), torch.randint(1, 100, (2, 8))
    real = torch.arange(8) < torch.tensor([8, 5])[:, None]
    expected = theirs(input_ids=ids, attention_mask=real.long(), pixel_values=pixels).logits
    pair = model.fuse(model.encode_text(Text(ids, real)), model.encode_image(Image.from_full(pixels)))
    logits = step.heads["mlm"](pair.text.to_padded())
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-5)


def official_step(system: str, case: str) -> Any:
    from diptych.models.importing import load_official

    return load_official(system, GOLDEN_CASES / case / "checkpoint.pth", num_heads=4).build().eval()


@pytest.mark.slow
def test_a_run_trained_here_is_exported_and_imported_again(tmp_path: Path):
    """The weights are the same after import, export and another import."""
    import_checkpoint("vilt", GOLDEN_CASES / "vilt_pretrain" / "checkpoint.pth", tmp_path / "a", 4, None, None)
    (tmp_path / "a" / "ignored.safetensors").unlink()  # as in a run that was trained here
    write_config(tmp_path / "a", replace(read_config(tmp_path / "a"), imported=None))
    lost = export(tmp_path / "a", "official", tmp_path / "x.pth").left_out
    assert lost == ["text_embeddings.position_ids (a buffer of 0, 1, 2 …, not a weight)"]
    import_checkpoint("vilt", tmp_path / "x.pth", tmp_path / "b", 4, None, None)
    modules = [load_model(tmp_path / name, torch.device("cpu")).module for name in ("a", "b")]
    for a, b in zip(*(module.parameters() for module in modules), strict=True):
        assert torch.equal(a, b)


def test_an_import_without_its_ignored_weights_says_so_when_exported(tmp_path: Path):
    import_checkpoint("vilt", GOLDEN_CASES / "vilt_pretrain" / "checkpoint.pth", tmp_path / "a", 4, None, None)
    assert export(tmp_path / "a", "official", tmp_path / "x.pth").left_out == []
    copy = diptych.load(tmp_path / "a", device="cpu").save(tmp_path / "copy")
    assert export(copy, "official", tmp_path / "z.pth").left_out == []
    whole, again = (load_state_dict(tmp_path / name) for name in ("x.pth", "z.pth"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    (tmp_path / "a" / "ignored.safetensors").unlink()
    lost = export(tmp_path / "a", "official", tmp_path / "y.pth").left_out
    assert lost == ["text_embeddings.position_ids (a buffer of 0, 1, 2 …, not a weight)"]


def test_an_exported_hugging_face_folder_keeps_what_weight_shapes_do_not_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import_checkpoint("vilt", GOLDEN_CASES / "vilt_pretrain" / "checkpoint.pth", tmp_path / "a", 4, None, None)
    assert main(["export", str(tmp_path / "a"), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert main(["import", "vilt", str(tmp_path / "hf"), "--out", str(tmp_path / "b")]) == 0
    assert "attention heads: num_heads 4 (not in the weight shapes" in capsys.readouterr().out
    assert read_config(tmp_path / "b").model.num_heads == 4  # type: ignore[union-attr]
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"a folder without a model\.safetensors"):
        import_checkpoint("vilt", tmp_path / "hf", tmp_path / "c")


def test_a_run_is_not_overwritten_and_its_number_of_heads_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import_checkpoint("vilt", GOLDEN_CASES / "vilt_pretrain" / "checkpoint.pth", tmp_path / "a", 4, None, None)
    own = tmp_path / "a" / "model.safetensors"
    before = own.read_bytes()
    assert main(["export", str(tmp_path / "a"), "--to", "safetensors", "--out", str(own)]) == 2
    assert "a part of the run itself" in capsys.readouterr().err and own.read_bytes() == before
    assert main(["export", str(tmp_path / "a"), "--to", "official", "--out", str(tmp_path / "x.pth")]) == 0
    assert "which diptych import reads: num_heads 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("to", "name", "expected"),
    [
        ("safetensors", "x.pth", "ends in .safetensors for --to safetensors, as x.safetensors"),
        ("official", "x.safetensors", "writes PyTorch's format; expected a name such as x.pth"),
        ("hf", "x.pth", "is a file; --to hf writes a folder"),
    ],
)
def test_a_file_name_of_another_format_is_an_error(to: Any, name: str, expected: str, tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(b"kept")
    with pytest.raises(RunError, match=expected):
        export(tmp_path / "no run", to, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"] and (tmp_path / "x.pth").read_bytes() == b"kept"


def test_a_run_of_ours_needs_no_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import_checkpoint("vilt", GOLDEN_CASES / "vilt_pretrain" / "checkpoint.pth", tmp_path / "a", 4, None, None)
    for path in (tmp_path / "a", tmp_path / "a" / "model.safetensors"):
        assert main(["import", "vilt", str(path), "--out", str(tmp_path / "b")]) == 2
        assert f"is a run of Diptych, which needs no import: evaluate it as it is, or train from it with --init_from {tmp_path / 'a'}" in capsys.readouterr().err  # fmt: skip


def test_a_folder_without_a_run_is_an_error(tmp_path: Path):
    with pytest.raises(RunError, match=r"no config\.json"):
        export(tmp_path, "official", tmp_path / "x.pth")


TINY = {"model.dim": 16, "model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 32}
CLIP_TINY = TINY | {f"model.text_{name.removeprefix('model.')}": size for name, size in TINY.items()}
CLIP_TINY |= {"model.embed_dim": 16, "images.shorter_side": 224, "embedders.image": "own", "embedders.text": "own"}
TEXTS = ["a red cup", "Two dogs, running: on the beach!", "caf\u00e9 na\u00efve", "one " * 99]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vilt.tiny", TINY | {"model.text_length": 24}),  # the vocabulary of the scenes
        ("vilt.base", TINY),  # BERT's
        ("clip.small", CLIP_TINY | {"model.vocab_size": 49408}),  # CLIP's
    ],
)
def test_hugging_face_s_processor_gives_the_same_ids_and_pixels(name: str, settings: dict[str, Any], tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    run = with_settings(recipe(name), settings)
    write_model(tmp_path / "run", run, build(run))
    left_out = export(tmp_path / "run", "hf", tmp_path / "hf").left_out
    assert not [part for part in left_out if "tokenizer" in part]
    processor, ours = transformers.AutoProcessor.from_pretrained(tmp_path / "hf"), tokenizer_of(run)
    for text in TEXTS:
        theirs = processor.tokenizer([text], truncation=True)["input_ids"][0]
        assert ours.encode([text]).ids[0].tolist() == theirs
    picture = Pillow.effect_noise((150, 111), 60).convert("RGB")
    pixels = torch.from_numpy(transform(picture, replace(run.images, augment=False))).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in run.images.mean_std)
    theirs = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(theirs, (pixels - mean) / std, rtol=0, atol=2 / 255 / min(run.images.std))
    assert main(["import", name.split(".")[0], str(tmp_path / "hf"), "--out", str(tmp_path / "again")]) == 0
    assert tokenizer_of(read_config(tmp_path / "again")).encode(TEXTS).ids.equal(ours.encode(TEXTS).ids)
