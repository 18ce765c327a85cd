"""VLMo's three stages, each a run that starts from the one before: images alone, texts alone, pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.batch import Image
from diptych.config.run import Pretrain
from diptych.data.loader import training_loader
from diptych.models.beit3 import recipes as beit3
from diptych.models.vlmo import recipes as vlmo
from diptych.runs import pretrain as job
from diptych.runs.build import build, init_from_run
from diptych.runs.pretrain import examples
from diptych.runs.run_folder import ancestors, write_run
from diptych.training.checkpoint import save_weights
from diptych.training.optimizer import adamw
from diptych.utils.state_dict import named_weights

SIZE: dict[str, Any] = {
    "dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "patch_size": 16, "grid": (5, 5), "vocab_size": 114, "text_length": 40,
}  # fmt: skip


def toy(run: Pretrain, vl_start_layer: int, relative: bool, begin: Path | str = "") -> Pretrain:
    optimizer = replace(run.training.optimizer, learning_rate=1e-2, weight_decay=0.5, warmup=0)
    training = replace(
        run.training, steps=2, batch_size=8, workers=0, device="cpu", precision="fp32", optimizer=optimizer
    )
    model = replace(run.model, **SIZE, vl_start_layer=vl_start_layer, relative=relative)
    images = replace(run.images, shorter_side=80)
    return replace(run, model=model, training=training, images=images, data="scenes:20", init_from=str(begin))


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """The folder of a visual tokenizer of patches twice as large as the model's, all of whose codes are in use."""
    run = beit3.tokenizer()
    size = {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "grid": (5, 5), "num_codes": 7, "code_dim": 4}
    run = replace(run, model=replace(run.model, **size, patch_size=32, decoder_depth=1))
    module = build(run, guided=False)
    module.get_buffer("model.codebook.idle").zero_()
    write_run(tmp_path / "tokenizer", run, {})
    save_weights(tmp_path / "tokenizer", module)
    return str(tmp_path / "tokenizer")


def trained(run: Pretrain, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """The model's weights before two steps on the run's own data and after them, and what the run did not take of its start."""
    module = build(run).train()
    left = init_from_run(module, run)
    begun = {name: tensor.clone() for name, tensor in named_weights(module.get_submodule("model")).items()}
    optimizer = adamw(module, run.training.optimizer)
    for (loaded,) in training_loader(examples(run, "train", True), batch_size=8, seed=0, start=0, steps=2, workers=0):
        losses = module(loaded.batch)
        torch.stack([weight * losses[name] for name, weight in module.weights.items()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    write_run(folder, run, {})
    save_weights(folder, module)
    return begun, named_weights(module.get_submodule("model")), left


@pytest.mark.quick("True")
@pytest.mark.parametrize("relative", [True, False])
def test_each_stage_begins_with_what_the_one_before_has_learned(relative: bool, tokenizer: str, tmp_path: Path):
    images = toy(vlmo.base_images(), 2, relative)
    images = replace(images, tokenizer=tokenizer, objectives=replace(images.objectives, codebook_size=7, min_block=2))
    begun, seen, left = trained(images, tmp_path / "images")
    texts = {name for name in seen if name.startswith(("words.", "transformer.pooler.")) or ".apart.text." in name}
    assert {name for name in seen if torch.equal(seen[name], begun[name])} == texts and left == []

    begun, read, left = trained(toy(vlmo.base_words(), 2, relative, tmp_path / "images"), tmp_path / "words")
    assert sorted(left) == ["heads.codes.bias", "heads.codes.weight", "model.hidden_patch"]
    assert begun.keys() == seen.keys() - {"hidden_patch"} and all(torch.equal(begun[n], seen[n]) for n in begun)
    apart = (".norm.", ".attention.", ".add_attended.", ".add_fed.", ".apart.image.")
    blocks = {n for n in read if ".blocks." in n and ".apart.text." not in n and any(part in n for part in apart)}
    outside = {name for name in read if name.startswith(("patches.", "transformer.pooler."))}
    assert {name for name in read if torch.equal(read[name], seen[name])} == blocks | outside
    if relative:  # texts learn their rows of the one table, those of pictures stand as they were
        name, rows = "transformer.positions.table", 9 * 9 + 3
        assert torch.equal(read[name][:rows], seen[name][:rows]) and seen[name][:rows].any()
        assert not torch.equal(read[name][rows:], seen[name][rows:])

    pairs = toy(vlmo.base(), 1, relative, tmp_path / "words")
    fresh = named_weights(build(pairs).get_submodule("model"))
    begun, _, left = trained(pairs, tmp_path / "pairs")
    together = {name for name in begun if ".together." in name}
    assert begun.keys() - read.keys() == together and len(together) == 6
    assert all(torch.equal(begun[name], (fresh if name in together else read)[name]) for name in begun)
    assert (
        ancestors(pairs)
        == f"{tmp_path / 'words'} (vlmo.base_words), which began from {tmp_path / 'images'} (vlmo.base_images)"
    )


def test_a_run_says_what_it_does_not_take(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    images = toy(vlmo.base_images(), 2, relative=False)
    write_run(tmp_path, images, {})
    module = build(replace(images, tokenizer=tokenizer), guided=False)
    save_weights(tmp_path, module)
    monkeypatch.setattr(job, "train", lambda *_: None)
    job.pretrain(toy(vlmo.base_words(), 2, relative=False, begin=tmp_path), tmp_path / "words")
    said = capsys.readouterr().out
    assert f"\nof {tmp_path} this run does not take: " in said and "model.hidden_patch" in said


def test_what_hidden_patches_are_asked_knows_where_they_lie(tokenizer: str):
    """A table of relative positions is all that tells two hidden patches apart."""
    run = toy(vlmo.base_images(), 2, relative=True)
    run = replace(run, tokenizer=tokenizer, objectives=replace(run.objectives, codebook_size=7))
    model: Any = build(run).eval().model
    image = Image.from_full(torch.randn(1, 3, 80, 80, generator=torch.Generator().manual_seed(0)))
    hidden = torch.zeros(1, 25, dtype=torch.bool)
    hidden[0, [3, 17]] = True
    with torch.no_grad():
        apart = model.encode_unimodal(model.encode_masked(image, hidden)).select(name="patches").to_padded()[0]
        torch.testing.assert_close(apart[3], apart[17])
        model.transformer.positions.table.normal_()
        apart = model.encode_unimodal(model.encode_masked(image, hidden)).select(name="patches").to_padded()[0]
    assert (apart[3] - apart[17]).abs().max() > 1e-3
