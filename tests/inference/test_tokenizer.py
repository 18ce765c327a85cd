"""The text tokenizer of a run: which vocabulary it has, and the copy of the vocabulary file in the run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diptych.cli import main
from diptych.config.run import Pretrain
from diptych.data.sources.base import DataError
from diptych.data.tokenizers.tokenizer import CLIP, read_vocabulary, vocabulary
from diptych.data.tokenizers.wordpiece import SPECIAL
from diptych.inference.saved_model import RunError, read_config
from diptych.inference.tokenizer import tokenizer_of
from diptych.models import common_recipes as tasks
from diptych.models.beit3 import recipes as beit3
from diptych.models.coca import recipes as coca
from diptych.models.configs import CoCaConfig
from diptych.models.vilt import recipes as vilt
from diptych.objectives.mlm import MLMLoss
from diptych.runs import finetune
from diptych.runs.build import objectives
from diptych.runs.check_init import check_same_vocabulary
from diptych.runs.run_folder import read_run, write_run
from diptych.runs.train import identity
from tests.inference.tiny_folders import edit_json


def listed(file: Path, *words: str) -> str:
    file.write_text("\n".join([*words, *SPECIAL]) + "\n", encoding="utf-8")
    return str(file)


def reading(vocabulary: str, size: int = 114) -> Pretrain:
    run = vilt.tiny()
    return replace(run, model=replace(run.model, vocab_size=size), vocabulary=vocabulary)  # type: ignore[type-var]


def test_models_of_clips_vocabulary_size_have_clips_tokenizer():
    run = coca.open_clip()
    assert isinstance(run.model, CoCaConfig)
    tokenizer = tokenizer_of(replace(run, model=replace(run.model, vocab_size=49408)))
    assert tokenizer.vocabulary is vocabulary(CLIP) and tokenizer.max_length == run.model.text_length


def test_a_vocabulary_file_is_read_if_the_run_names_one(tmp_path: Path):
    run = reading(listed(tmp_path / "v.txt", "dog", "##s"), 9)
    ids = tokenizer_of(run).encode(["dogs [MASK]"]).ids[0].tolist()
    assert ids == [4, 0, 1, *[3] * 3, 5] and tokenizer_of(run).vocabulary.mask == 6
    (words,) = [o for o in objectives(run) if isinstance(o, MLMLoss)]
    assert (words.masking.mask_id, words.masking.vocab_size) == (6, 7)


def test_a_vocabulary_that_does_not_fit_the_model_raises(tmp_path: Path):
    file = listed(tmp_path / "v.txt", "dog")
    with pytest.raises(RunError, match=r"has 6 tokens, but model\.vocab_size is 5: give --model\.vocab_size 6"):
        tokenizer_of(reading(file, 5))
    with pytest.raises(RunError, match=r"mask token is 5, but model\.mask_token_id is 103: set model\.mask"):
        tokenizer_of(replace(beit3.base(), vocabulary=file))
    with pytest.raises(RunError, match="give --vocabulary FILE"):
        tokenizer_of(reading("", 99))


def test_a_vocabulary_is_stored_with_its_run_and_compared_by_content(tmp_path: Path, monkeypatch):
    file, out = listed(tmp_path / "v.txt", "dog"), tmp_path / "run"
    write_run(out, reading(file), {}, ())
    Path(file).unlink()
    out = out.rename(tmp_path / "moved")
    run, _ = read_run(out)
    saved = read_config(out)
    assert Path(run.vocabulary).parent == out and saved.vocabulary == run.vocabulary
    assert tokenizer_of(run).vocabulary.tokens == tokenizer_of(saved).vocabulary.tokens == ("dog", *SPECIAL)
    monkeypatch.setattr(finetune, "check_model", lambda *_: None)  # the folder has no weights to compare
    assert finetune.inherited(out, tasks.finetuning("vqa", vilt.base())).vocabulary == run.vocabulary
    assert identity(run) == identity(reading(listed(tmp_path / "again.txt", "dog")))
    assert identity(run) != identity(reading(listed(tmp_path / "other.txt", "cat")))

    started = replace(reading(str(tmp_path / "again.txt")), init_from=str(out))
    check_same_vocabulary(started)
    for other in (str(tmp_path / "other.txt"), ""):
        with pytest.raises(RunError, match=r"learned with the vocabulary vocabulary-.*give --vocabulary"):
            check_same_vocabulary(replace(started, vocabulary=other))

    listed(Path(run.vocabulary), "cat")
    with pytest.raises(DataError, match="it is not the vocabulary that its run was trained with"):
        tokenizer_of(run)


def test_a_run_reads_no_vocabulary_outside_its_folder(tmp_path: Path):
    out = tmp_path / "run"
    write_run(out, reading(listed(tmp_path / "v.txt", "dog")), {}, ())
    edit_json(out / "run.json", "run/vocabulary", "../v.txt")
    edit_json(out / "config.json", "vocabulary", "../v.txt")
    assert read_run(out)[0].vocabulary == read_config(out).vocabulary == str(out / "v.txt")


@pytest.mark.parametrize("name", ["..", ".", "/", "v.txt/..", "a" * 300 + ".txt", "no.txt", "run.json"])
def test_a_vocabulary_that_is_no_vocabulary_file_of_the_folder_is_one_line(tmp_path: Path, name: str):
    write_run(tmp_path / "run", reading(listed(tmp_path / "v.txt", "dog")), {}, ())
    edit_json(tmp_path / "run" / "config.json", "vocabulary", name)
    with pytest.raises((DataError, RunError)) as error:
        tokenizer_of(read_config(tmp_path / "run"))
    assert "\n" not in str(error.value)


def test_train_tokenizer_writes_a_vocabulary_and_never_overwrites_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "learned.txt"
    assert main(["train-tokenizer", "scenes:20", "--size", "70", "--out", str(file)]) == 0
    assert "70 tokens" in capsys.readouterr().out and read_vocabulary(file).size == 70
    content, other = file.read_bytes(), str(tmp_path / "other.txt")
    for words, error in (
        (["--size", "9", "--out", other], "raise --size"),
        (["--out", "x.json"], "FILE.txt"),
        (["--size", "60", "--out", str(file)], "is there already"),
    ):
        assert main(["train-tokenizer", "scenes:20", *words]) == 2
        assert error in capsys.readouterr().err
    assert file.read_bytes() == content
