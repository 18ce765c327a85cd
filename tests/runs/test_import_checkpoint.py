"""An imported official checkpoint is a run like any other: fine-tuning is initialised from its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.cli import main
from diptych.data.tokenizers.tokenizer import vocabulary
from diptych.data.tokenizers.wordpiece import SPECIAL
from diptych.inference.saved_model import read_config
from diptych.inference.tokenizer import tokenizer_of
from diptych.models.configs import ViLTConfig
from diptych.runs.run_folder import read_run
from tests.parity.goldens import GOLDEN_CASES
from tests.runs.tiny_runs import TRAINING, rows

GOLDEN = GOLDEN_CASES / "vilt_pretrain" / "checkpoint.pth"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The golden ViLT with our vocabulary's size: rows are added to its word embeddings, which goldens keep small."""
    state = torch.load(GOLDEN, weights_only=True)["state_dict"]
    more = vocabulary().size - len(state["mlm_score.bias"])
    torch.manual_seed(0)
    for name in ("text_embeddings.word_embeddings.weight", "mlm_score.decoder.weight", "mlm_score.bias"):
        state[name] = torch.cat([state[name], 0.02 * torch.randn(more, *state[name].shape[1:])])
    torch.save({"state_dict": state}, tmp_path / "official.ckpt")
    return tmp_path / "official.ckpt"


@pytest.mark.slow
def test_vqa_is_fine_tuned_from_an_official_vilt(official: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("diptych.runs.train.VALIDATION_EXAMPLES", 8)
    imported, out = tmp_path / "imported", tmp_path / "vqa"
    assert main(["import", "vilt", str(official), "--out", str(imported), "--num_heads", "4"]) == 0
    assert "pretraining with heads.itm, heads.mlm, " in capsys.readouterr().out
    training = [*TRAINING, "--steps", "2", "--workers", "0", "--optimizer.part_rates", "head=1"]
    assert main(["finetune", "vqa", "--init_from", str(imported), *training, "--out", str(out)]) == 0
    assert [row["step"] for row in rows(out)] == [1, 2, 2] and "val/vqa/score" in rows(out)[-1]

    run, _ = read_run(out)
    assert isinstance(run.model, ViLTConfig)
    assert (run.model.dim, run.model.grid, run.images.shorter_side) == (40, (4, 4), 32)
    before, after = load_file(imported / "model.safetensors"), load_file(out / "model.safetensors")
    state = torch.load(official, weights_only=True)["state_dict"]
    assert torch.equal(before["model.words.word.weight"], state["text_embeddings.word_embeddings.weight"])
    assert torch.equal(before["model.patches.position"], state["transformer.pos_embed"])
    model = {name for name in before if name.startswith("model.")}
    assert model | {name for name in after if name.startswith("head.")} == after.keys()
    assert len(after["head.answers.bias"]) == len(read_config(out).labels)
    most = 2 * run.training.optimizer.learning_rate * 1.1  # two steps of AdamW, and its weight decay
    apart = {name: (after[name] - before[name]).abs().max().item() for name in model}
    assert max(apart.values()) < most and sum(x > 0 for x in apart.values()) > 0.9 * len(apart)


@pytest.mark.slow
def test_a_model_of_another_vocabulary_size_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["import", "vilt", str(GOLDEN), "--out", str(tmp_path / "imported"), "--num_heads", "4"]) == 0
    capsys.readouterr()
    command = ["finetune", "vqa", "--init_from", str(tmp_path / "imported"), *TRAINING, "--out", str(tmp_path / "vqa")]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.vocab_size is 220" in line and not (tmp_path / "vqa" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_custom_vocabulary_is_imported_and_copied_to_later_runs(tmp_path: Path, capsys, monkeypatch):
    """It is evaluated and fine-tuned after the checkpoint and vocabulary files are gone. The model has 220 word embeddings."""
    monkeypatch.setattr("diptych.runs.train.VALIDATION_EXAMPLES", 8)
    monkeypatch.setattr("diptych.runs.evaluate.report.write", lambda *_: None)  # pages are slow, and not tested here
    words, checkpoint = tmp_path / "words.txt", tmp_path / "official.pth"
    assert main(["train-tokenizer", "scenes:60", "--size", "90", "--out", str(words)]) == 0
    content = words.read_bytes()
    checkpoint.write_bytes(GOLDEN.read_bytes())
    command = ["import", "vilt", str(checkpoint), "--num_heads", "4", "--vocabulary", str(words)]
    assert main([*command, "--out", str(tmp_path / "first")]) == 0
    words.unlink()
    checkpoint.unlink()
    imported = (tmp_path / "first").rename(tmp_path / "imported")

    exact = ["--precision", "fp32", "--device", "cpu", "--workers", "0", "--data", "scenes:4"]
    for task in ("retrieval", "matching"):
        assert main(["evaluate", str(imported), "--task", task, "--split", "train", "--captions", "1", *exact]) == 0
    out = tmp_path / "vqa"
    training = [*TRAINING, "--steps", "1", "--workers", "0"]
    assert main(["finetune", "vqa", "--init_from", str(imported), *training, "--out", str(out)]) == 0
    for folder in (imported, out):
        run = read_config(folder)
        assert Path(run.vocabulary).parent == folder and Path(run.vocabulary).read_bytes() == content
        assert tokenizer_of(run).vocabulary.size == len(content.split())
        assert not (tokenizer_of(run).encode(["a red square"]).ids == tokenizer_of(run).vocabulary.unknown).any()

    words.write_bytes(content + b"\nsquire")
    capsys.readouterr()
    command = ["finetune", "vqa", "--init_from", str(imported), *training, "--vocabulary", str(words)]
    assert main([*command, "--out", str(tmp_path / "other")]) == 2
    assert "learned with the vocabulary" in capsys.readouterr().err


def test_a_vocabulary_that_does_not_fit_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = tmp_path / "words.txt"
    words.write_text("\n".join([*SPECIAL, *(f"word{i}" for i in range(300))]))
    for path, message in (
        (words, "has 305 tokens, but model.vocab_size is 220"),
        (tmp_path / "none.txt", "cannot be read"),
    ):
        command = ["import", "vilt", str(GOLDEN), "--num_heads", "4", "--vocabulary", str(path)]
        assert main([*command, "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and not (tmp_path / "out").exists()
