"""The command line: help without torch, one-line errors, exit statuses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diptych.cli import COMMANDS, main
from diptych.cli.arguments import apply_overrides, flags, pop_option
from diptych.cli.errors import UsageError
from diptych.config.tasks import EVALUATIONS, Evaluation
from diptych.models.vilt import recipes as vilt
from diptych.runs.recipes import recipe, recipes
from diptych.runs.run_folder import write_run


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command with invalid arguments prints; its exit status must be 2."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("diptych: ") and "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pretain", "no command 'pretain'; did you mean pretrain?"),
        ("zzz", "no command 'zzz' (diptych --help lists them)"),
        ("pretrain vilt.tinny --out x", "did you mean vilt.tiny or "),
        ("pretrain vilt.tinny --out x", "(diptych pretrain --help lists all "),
        ("pretrain --out x", "no recipe given; diptych pretrain --help lists them"),
        ("pretrain vilt.tiny", "--out is missing"),
        ("pretrain vilt.tiny --out", "--out needs a value"),
        ("pretrain vilt.tiny --out --data scenes", "--out needs a value"),
        ("pretrain vilt.tiny --out {garbage}", "garbage.pth is a file; give a folder"),
        ("pretrain vilt.tiny --otu x", "--out is missing; did you mean it by --otu?"),
        ("pretrain vilt.tiny --out x --stepz 3", "no --stepz; did you mean --steps?"),
        ("pretrain vilt.tiny --out x --model.mlp_dmi 3", "no --model.mlp_dmi; did you mean --model.mlp_dim?"),
        ("pretrain vilt.tiny --out x --steps 1.5", "--steps: expected an integer, got '1.5'"),
        ("pretrain vilt.tiny --out x --steps 0", "steps must be in [1, 2147483647]: got 0"),
        (
            "pretrain vilt.tiny --out x --objectives.mlm.rate 2",
            "diptych: objectives.mlm.rate must be in (0, 1]: got 2",
        ),
        ("pretrain vilt.tiny --out x --model.depth 0", "diptych: model.depth must be in [1, 512]: got 0"),
        ("pretrain vilt.tiny --out x --model.dim 0", "diptych: model.dim must be in [1, 65536]: got 0"),
        ("pretrain vilt.tiny --out x --model.dim 65", "model.dim must be a multiple of model.num_heads, 4: got 65"),
        (
            "pretrain vilt.tiny --out x --images.shorter_side=-80",
            "diptych: images.shorter_side must be in [1, 4096]: got -80",
        ),
        ("pretrain vilt.tiny --out x --optimizer.learning_rate nan", "learning_rate must be in (0, 100]: got nan"),
        (
            "pretrain vilt.tiny --out x --seed 1180591620717411303424",
            "seed must be in [0, 9223372036854775807]: got 1180591",
        ),
        ("pretrain vilt.tiny --out x --seed=-1", "seed must be in [0, 9223372036854775807]: got -1"),
        (
            "pretrain clip.small --out x --data scenes:20 --heads 8",
            "has no output head called '8'; its heads are itc",
        ),
        ("pretrain vilt.tiny --out x --lr 1", "no --lr; did you mean --optimizer.learning_rate?"),
        ("pretrain vilt.tiny --out x --wd 1", "no --wd; did you mean --optimizer.weight_decay?"),
        ("pretrain vilt.tiny --out x --bs 1", "no --bs; did you mean --batch_size?"),
        ("pretrain vilt.tiny --out x --batch-siz 1", "no --batch_siz; did you mean --batch_size?"),
        (
            "finetune vqa --recipe vilt.tiny --out x --negative_texts 3",
            "--negative_texts is a setting of retrieval, and",
        ),
        ("finetune vqa --recipe vilt.tiny --out x --task retrieval", "there is no --task"),
        (
            "finetune retrieval --recipe vilt.tiny --out x --ablate image",
            "--ablate is a setting of vqa and grounding, and the task",
        ),
        ("pretrain vilt.tiny --out x --num_epochs 1", "no --num_epochs; did you mean --epochs?"),
        ("pretrain CLIP.small --out x", "no recipe 'CLIP.small'; did you mean clip.small or "),
        (
            "pretrain vilt.tiny --out x --model.image_size 1",
            "no --model.image_size; did you mean --images.shorter_side?",
        ),
        ("pretrain vilt.tiny --out x --images.size 1", "no --images.size; did you mean --images.shorter_side?"),
        ("pretrain vilt.tiny --out x --depth 1", "no --depth; did you mean --model.depth?"),
        ("pretrain vilt.tiny --output_dir x", "--out is missing; did you mean it by --output_dir?"),
        ("pretrain vilt.tiny --out x --data scenes:-1", "'-1' is not a number of images"),
        ("pretrain vilt.tiny --out x --data scenes:1e9", "'1e9' is not a number of images"),
        ("pretrain vilt.tiny --out x --data scenes:", "'' is not a number of images"),
        ("pretrain vilt.tiny --out x --data scenes:1000000000", "size must be in [1, 200,000], got 1000000000"),
        ("evaluate x --task retrieval --gallery -1", "gallery must be in [0, 2147483647]: got -1"),
        ("corrupt-captions scenes --out x --fraction 2", "fraction must be in [0, 1]: got 2.0"),
        ("benchmark --data scenes --out x --seeds 0,-1", "--seeds must be in [0, 9223372036854775807]: got -1"),
        ("benchmark --data scenes --out x --num_beams 0", "beams must be in [1, 1024]: got 0"),
        ("demo --out x --seed 1180591620717411303424", "--seed must be in [0, 9223372036854775807]: got 1180591"),
        ("train-tokenizer scenes --out x.txt --size 0", "--size must be in [1, 2097152]: got 0"),
        ("baselines --data scenes:20 --gallery -3", "gallery must be in [0, 2147483647]: got -3"),
        ("estimate vilt.tiny --gpus cpu:99999999", "write cpu:2 for two cores, at most 1024"),
        ("pretrain vilt.tiny --out x --steps", "Missing value for argument '--steps'"),
        ("pretrain vilt.tiny --out x --precision fp8", "--precision: expected one of auto, fp32, bf16, got 'fp8'"),
        (
            "pretrain vilt.tiny --out x --optimizer.max_grad_norm no",
            "--optimizer.max_grad_norm: expected a number, got 'no'",
        ),
        ("pretrain vilt.tiny --out x stray", "Unrecognized options: stray"),
        ("pretrain vilt.tiny --out x --steps 10 20", "Unrecognized options: 20 after --steps, which takes one value"),
        ("pretrain vilt.tiny --out=", "--out needs a value"),
        ("train-tokenizer scenes:20 --out=", "--out needs a value"),
        ("pretrain vilt.tiny --out x --data {tmp}/nowhere", "nowhere: no such file or folder; check --data"),
        ("pretrain vilt.tiny --out x --data scenes:0", "size must be in [1, 200,000], got 0"),
        ("pretrain vilt.tiny --out x --data scenes:many", "write scenes:2000"),
        ("pretrain vilt.tiny --out x --data scenes:20 --device warp", "--device warp cannot be used here"),
        pytest.param(
            "pretrain vilt.tiny --out {tmp}/x --data scenes:8 --batch_size 999",
            "the batch size, 999, exceeds the 40 examples",
            marks=pytest.mark.slow,
        ),
        ("pretrain vilt.tiny --out x --data scenes:8 --model.vocab_size 99", "model.vocab_size is 99"),
        ("pretrain vilt.tiny --out x --data scenes:8 --init_from {tmp}/nowhere", "no config.json there"),
        ("finetune vqaa --out x", "did you mean vqa or "),
        ("finetune albef.vqaa --out x", "did you mean albef.vqa or "),
        ("corrupt-captions scenes --out x --data scenes", "there is no --data; did you mean"),
        ("finetune albef.vqa --recipe vilt.tiny --out x", "albef.vqa has a model of its own"),
        ("finetune crossvit.small --data {tmp} --out x", "CIFAR-100's meta, train and test"),
        ("finetune", None),
        ("finetune vqa --out x", "give either --from RUN"),
        ("finetune vqa --from a --recipe b --out x", "give either --from RUN"),
        ("finetune vqa --from {tmp}/nowhere --out x", "no config.json there"),
        ("evaluate {tmp}/nowhere", "no config.json there"),
        ("evaluate {tmp}", "no config.json there"),
        ("evaluate {broken}", "not a model that this version can read (config.colour: no such field; remove it)"),
        ("evaluate x --task vqaa", "--task: expected one of retrieval, captioning, vqa, matching, "),
        (
            "evaluate x --task vqa --rerank 3",
            "--rerank is a setting of retrieval, and the task is vqa: leave it out, or evaluate on retrieval",
        ),
        ("evaluate x --task retrieval --galery 3", "did you mean --gallery?"),
        ("baselines --task vqaa", "got 'vqaa'; did you mean vqa?"),
        ("baselines --dota scenes", "no --dota; did you mean --data?"),
        ("baselines --data {tmp}/nowhere", "nowhere: no such file or folder; check --data"),
        ("baselines --task matching --data {tmp}/nowhere", "nowhere: no such file or folder; check --data"),
        ("baselines --data scenes:9 --split spring", "no split 'spring'"),
        ("info flamingo", "there is no system or recipe 'flamingo'"),
        ("info blipp", "did you mean blip?"),
        ("evaluate x --task retreival", "got 'retreival'; did you mean retrieval?"),
        ("info vilt vit", "info takes only one system, recipe or run; remove vit"),
        ("info {tmp}", "no config.json there"),
        ("import vilt {tmp}/nowhere.ckpt --out x", "no such file"),
        ("import vilt {garbage} --out x", "garbage.pth"),
        ("import flamingo {garbage} --out x", "no system 'flamingo'"),
        ("import vilt {garbage} --out x --num_heads two", "--num_heads must be an integer: got 'two'"),
        ("import vilt {garbage} --out x --grid 12", "--grid must be ROWSxCOLUMNS"),
    ],
)
def test_errors_are_one_line(command: str, message: str | None, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    config = '{"model_type": "diptych", "version": "0.2.0", "colour": 3}'
    (tmp_path / "broken" / "config.json").write_text(config)
    (tmp_path / "garbage.pth").write_bytes(b"\x80\x04garbage" * 9)
    names = {"tmp": tmp_path, "broken": tmp_path / "broken", "garbage": tmp_path / "garbage.pth"}
    words = [word.format(**names) for word in command.split()]
    if message is None:
        assert main(words) == 0
    else:
        assert message in error_of(words, capsys)
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_debug_raises_the_error():
    with pytest.raises(UsageError, match="--out is missing"):
        main(["pretrain", "vilt.tiny", "--debug"])


@pytest.mark.slow
def test_help_imports_no_torch():
    calls = [["--help"], ["--version"], ["pretrain", "--help"], ["pretrain", "vilt.tiny", "--help"], ["finetune"]]
    calls += [["finetune", "vqa", "--help"], ["evaluate", "--help"], ["info", "--help"], ["import", "--help"]]
    calls += [["baselines", "--help"], ["baselines", "--tusk", "vqa"]]
    calls += [["pretrain", "vilt.tiny", "--nonsense", "1", "--out", "x"]]
    code = f"import sys; from diptych.cli import main\nfor words in {calls}: main(words)\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_missing_data_and_runs_are_reported_without_importing_torch(tmp_path: Path):
    write_run(tmp_path / "run", replace(vilt.tiny(), data="nowhere"), {}, ())
    calls = {
        "pretrain albef.small --data nowhere --out x": "nowhere: no such file or folder",
        "pretrain albef.small --init_from nowhere --out x": "nowhere: no config.json",
        "pretrain albef.small --data x-{0..3}.tar --out x": "x-0.tar: no such shard",
        "pretrain beit3.small --visual_tokenizer nowhere --out x": "nowhere: no config.json",
        "pretrain vilt.tiny --embedders.image nowhere --out x": "nowhere: no such file or folder; check --embedders.image",
        "finetune vqa --from nowhere --out x": "nowhere: no config.json",
        "finetune vqa --recipe vilt.tiny --data nowhere --out x": "nowhere: no such file or folder",
        "evaluate nowhere": "nowhere: no config.json",
        "evaluate run": "nowhere: no such file or folder",
        "evaluate run --data there": "there: no such file or folder",
        "capfilt nowhere --filter run --out x": "nowhere: no such file or folder",
        "capfilt scenes --filter nowhere --out x": "nowhere: no config.json",
        "capfilt scenes --filter run --against nowhere --out x": "nowhere: no such file or folder",
        "pretrain vilt.tiny --images.patch_size 8 --out x": "images.patch_size is 8, and the model's patches are of 16 pixels",
        "pretrain clip.small --embedders.image own --images.shorter_side 40 --out x": "set images.shorter_side to a multiple of that",
        "pretrain vilt.tiny --workers -1 --out x": "workers must be in [0, 256]: got -1",
        "pretrain vilt.tiny --objectives.mlm.weight -1 --out x": "objectives.mlm.weight must be in (0, 1000000.0]: got -1.0",
        "benchmark --data nowhere --out x": "nowhere: no such file or folder",
        "benchmark --data scenes --rows vilt,albeff --out x": "there is no recipe 'albeff.small'; did you mean albef.small",
    }
    code = "import sys; from diptych.cli import main\nfor line in sys.argv[1:]: main(line.split())\n"
    code += "assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, *calls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line, message in zip(done.stderr.splitlines(), calls.values(), strict=True):
        assert message in line


def test_help_lists_every_command(capsys):
    assert main([]) == main(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", help_text, re.MULTILINE) for name in COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        help_text = capsys.readouterr().out
        usage, _, examples = help_text.partition("\nExamples:\n")
        assert f"diptych {name}" in usage and f"  diptych {name}" in examples
        assert max(map(len, help_text.splitlines())) <= 120


def test_help_of_a_recipe_lists_the_flag_of_every_field(capsys):
    assert main(["pretrain", "vilt.tiny", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "--out DIR" in help_text and "--training." not in help_text
    for flag in flags(recipe("vilt.tiny")):
        assert flag.replace("--training.", "--") + " " in help_text, flag
    assert main(["evaluate", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(flag + " " in help_text for flag in flags(Evaluation()))
    for task, evaluation in EVALUATIONS.items():
        assert main(["evaluate", "--task", task, "--help"]) == 0
        help_text = capsys.readouterr().out
        assert all(flag + " " in help_text for flag in flags(evaluation()))


def test_an_unknown_recipe_suggests_the_nearest_three(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = error_of(["pretrain", "vilt.tinny", "--out", "x"], capsys)
    assert sum(name in line for name in recipes()) <= 3 and len(line) < 160


@pytest.mark.parametrize("command", ["corrupt-captions", "capfilt"])
def test_a_positional_argument_is_not_a_flag(command: str, capsys):
    assert main([command, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert not re.search(r"^ *--data ", help_text, re.MULTILINE)
    assert re.search(r"^ *--split ", help_text, re.MULTILINE) and "None" not in help_text


def test_values_are_typed_and_fields_of_training_need_no_prefix():
    run = recipe("vilt.tiny")
    words = "--steps 7 --optimizer.learning-rate=0.5 --model.grid 2 3 --images.augment True --training.batch_size 4"
    changed = apply_overrides(run, words.split(), "pretrain vilt.tiny")
    assert (changed.training.steps, changed.training.batch_size, changed.model.grid) == (7, 4, (2, 3))
    assert changed.training.optimizer.learning_rate == 0.5 and changed.images.augment is True
    assert changed.training.optimizer.warmup == run.training.optimizer.warmup
    assert apply_overrides(run, ["--init_from", "there"], "").init_from == "there"
    assert apply_overrides(run, [], "") == run


def test_an_option_is_removed_from_the_words():
    words = ["--a", "1", "--out", "there", "--b=2"]
    assert (pop_option(words, "--out"), pop_option(words, "--b"), pop_option(words, "--c", "3")) == ("there", "2", "3")
    assert words == ["--a", "1"]


def test_recipes_are_the_functions_that_return_a_pre_training_run():
    assert {"vilt.tiny", "vilt.small", "vilt.base", "vit.base"} <= set(recipes())
    assert not [name for name in recipes() if name.startswith(("run.", "models.", "finetune."))]


@pytest.mark.slow
def test_info_of_a_run_says_what_it_is_and_can(pretrained: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(pretrained)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    weights = load_file(pretrained / "model.safetensors")
    assert lines["model"] == f"ViLT, {sum(tensor.numel() for tensor in weights.values()):,} weights"
    assert lines["task"].startswith("pretraining (trained with ") and "itm" in lines["heads"] and "itm" in lines["can"]


def test_info_prints_the_published_counts(capsys):
    assert main(["info", "vilt"]) == 0
    output = capsys.readouterr().out
    assert output.count("135,660,092") == 2  # ours, and the published one
    assert "GFLOP" in output and "71.32" in output
