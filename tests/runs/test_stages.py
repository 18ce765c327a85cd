"""VLMo's three stages, each initialised from the one before: images only, text only, pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.batch import Image
from diptych.config.objectives import BlockMasking, MaskedCodesImageOnly, Objectives
from diptych.config.run import Pretrain
from diptych.data.loader import training_loader
from diptych.models.beit3 import recipes as beit3
from diptych.models.vlmo import recipes as vlmo
from diptych.runs import pretrain as pretraining
from diptych.runs.build import build, init_from_run
from diptych.runs.pretrain import examples
from diptych.runs.run_folder import ancestors
from diptych.training.optimizer import build_optimizer
from diptych.utils.state_dict import named_weights
from tests.runs.tiny_runs import write_model

SIZE: dict[str, Any] = {
    "dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 32,
    "patch_size": 16,
    "grid": (5, 5),
    "vocab_size": 114,
    "text_length": 40,
}


def toy(run: Pretrain, vl_start_layer: int, relative_position: bool, begin: Path | str = "") -> Pretrain:
    optimizer = replace(run.training.optimizer, learning_rate=1e-2, weight_decay=0.5, warmup=0)
    training = replace(
        run.training, steps=2, batch_size=8, workers=0, device="cpu", precision="fp32", optimizer=optimizer
    )
    model = replace(run.model, **SIZE, vl_start_layer=vl_start_layer, relative_position=relative_position)
    images = replace(run.images, shorter_side=80)
    return replace(run, model=model, training=training, images=images, data="scenes:20", init_from=str(begin))


def masked_codes(min_block: int) -> Objectives:
    """Codes of the tokenizer below, in blocks of at least `min_block` patches."""
    patches = BlockMasking(rate=75 / 196, min_block=min_block)
    return Objectives(masked_codes_image_only=MaskedCodesImageOnly(patches=patches, codebook_size=7))


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Folder of a visual tokenizer with patches twice as large as the model's; all its codes are in use."""
    run = beit3.visual_tokenizer()
    size = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "grid": (5, 5), "num_codes": 7, "code_dim": 4}
    run = replace(run, model=replace(run.model, **size, patch_size=32, decoder_depth=1))
    module = build(run, guided=False)
    module.get_buffer("model.codebook.idle").zero_()
    return str(write_model(tmp_path / "tokenizer", run, module))


def trained(run: Pretrain, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Trains two steps on the run's data.

    Returns:
        The model's weights before and after, and the names of the weights of `init_from` that were not used.
    """
    module = build(run).train()
    unused = init_from_run(module, run)
    initial = {name: tensor.clone() for name, tensor in named_weights(module.get_submodule("model")).items()}
    optimizer = build_optimizer(module, run.training.optimizer)
    for (loaded,) in training_loader(examples(run, "train", True), batch_size=8, seed=0, start=0, steps=2, workers=0):
        losses = module(loaded.batch)
        torch.stack([weight * losses[name] for name, weight in module.weights.items()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    write_model(folder, run, module)
    return initial, named_weights(module.get_submodule("model")), unused


@pytest.mark.quick("True")
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.slow
def test_each_stage_starts_with_the_weights_of_the_one_before(relative: bool, tokenizer: str, tmp_path: Path):
    images = toy(vlmo.base_images(), 2, relative)
    images = replace(images, visual_tokenizer=tokenizer, objectives=masked_codes(min_block=2))
    initial, after_images, unused = trained(images, tmp_path / "images")
    texts = {
        name
        for name in after_images
        if name.startswith(("words.", "transformer.pooler.")) or ".modality_ffn.text." in name
    }
    unchanged = {name for name in after_images if torch.equal(after_images[name], initial[name])}
    assert unchanged == texts and unused == []

    words = toy(vlmo.base_text(), 2, relative, tmp_path / "images")
    initial, after_words, unused = trained(words, tmp_path / "words")
    assert sorted(unused) == ["heads.codes.bias", "heads.codes.weight", "model.mask_token"]
    assert initial.keys() == after_images.keys() - {"mask_token"}
    assert all(torch.equal(initial[name], after_images[name]) for name in initial)
    shared_or_image = (".norm.", ".attention.", ".add_attended.", ".add_fed.", ".modality_ffn.image.")
    blocks = {
        n
        for n in after_words
        if ".blocks." in n and ".modality_ffn.text." not in n and any(part in n for part in shared_or_image)
    }
    outside = {name for name in after_words if name.startswith(("patches.", "transformer.pooler."))}
    unchanged = {name for name in after_words if torch.equal(after_words[name], after_images[name])}
    assert unchanged == blocks | outside
    if relative:  # training on text changes its rows of the shared table, but not those of images
        before, after = (weights["transformer.positions.table"] for weights in (after_images, after_words))
        image_rows = 9 * 9 + 3
        assert torch.equal(after[:image_rows], before[:image_rows]) and before[:image_rows].any()
        assert not torch.equal(after[image_rows:], before[image_rows:])

    pairs = toy(vlmo.base(), 1, relative, tmp_path / "words")
    fresh = named_weights(build(pairs).get_submodule("model"))
    initial, _, unused = trained(pairs, tmp_path / "pairs")
    together = {name for name in initial if ".vl_ffn." in name}
    assert initial.keys() - after_words.keys() == together and len(together) == 6
    assert all(torch.equal(initial[name], (fresh if name in together else after_words)[name]) for name in initial)
    assert (
        ancestors(pairs)
        == f"{tmp_path / 'words'} (vlmo.base_text), initialised from {tmp_path / 'images'} (vlmo.base_images)"
    )


def test_a_run_prints_the_weights_that_it_does_not_use(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    images = toy(vlmo.base_images(), 2, relative_position=False)
    module = build(replace(images, visual_tokenizer=tokenizer), guided=False)
    write_model(tmp_path, images, module)
    monkeypatch.setattr(pretraining, "train", lambda *_: None)
    pretraining.pretrain(toy(vlmo.base_text(), 2, relative_position=False, begin=tmp_path), tmp_path / "words")
    output = capsys.readouterr().out
    assert f"\nweights of {tmp_path} that this run does not use: " in output and "model.mask_token" in output


def test_masked_patches_are_distinguished_by_their_positions(tokenizer: str):
    """With relative positions, two masked patches differ by the bias table only: equal if it is zero."""
    run = toy(vlmo.base_images(), 2, relative_position=True)
    run = replace(run, visual_tokenizer=tokenizer, objectives=masked_codes(min_block=16))
    model: Any = build(run).eval().model
    image = Image.from_full(torch.randn(1, 3, 80, 80, generator=torch.Generator().manual_seed(0)))
    hidden = torch.zeros(1, 25, dtype=torch.bool)
    hidden[0, [3, 17]] = True
    with torch.no_grad():
        states = model.encode_unimodal(model.encode_masked(image, hidden)).select(name="patches").to_padded()[0]
        torch.testing.assert_close(states[3], states[17])
        model.transformer.positions.table.normal_()
        states = model.encode_unimodal(model.encode_masked(image, hidden)).select(name="patches").to_padded()[0]
    assert (states[3] - states[17]).abs().max() > 1e-3
