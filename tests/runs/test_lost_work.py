"""The command line never loses work silently: locks, damaged files, full disks, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diptych.cli import main
from diptych.inference.saved_model import read_config
from diptych.runs import report
from diptych.runs.run_folder import read_run
from diptych.training.checkpoint import CHECKPOINT, PREVIOUS
from diptych.utils.io import DamagedFile
from diptych.utils.lock import locked
from tests.capfilt.tiny_capfilt import saved
from tests.inference.tiny_folders import edit_json
from tests.parity.goldens import GOLDEN_CASES
from tests.runs.tiny_runs import ENVIRONMENT, pretrain, rows, started

posix = pytest.mark.skipif(os.name != "posix", reason="locks and signals are POSIX's")
HOLDS = "import sys; from pathlib import Path; from diptych.utils.lock import locked\n"
HOLDS += "with locked(Path(sys.argv[1]), sys.argv[2]): print('locked', flush=True); sys.stdin.readline()"


def error_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failing command prints to stderr."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(saved(tmp_path_factory.mktemp("untrained") / "blip"))


@posix
@pytest.mark.parametrize(
    ("words", "folder", "file"),
    [
        ("pretrain vilt.tiny --data scenes:50 --steps 2 --device cpu --out {out}", "{out}", ""),
        ("finetune vqa --recipe vilt.tiny --data scenes:50 --steps 2 --device cpu --out {out}", "{out}", ""),
        (
            "evaluate {run} --task matching --data scenes:8 --device cpu --workers 0",
            "{run}/evaluate-matching-scenes_8-val",
            "",
        ),
        ("export {run} --to official --out {out}/x.pth", "{out}", "x.pth"),
        ("capfilt scenes:8 --filter {run} --device cpu --out {out}", "{out}", ""),
        ("corrupt-captions scenes:8 --out {out}", "{out}", ""),
        ("train-tokenizer scenes:8 --out {out}/words.txt", "{out}", "words.txt"),
        ("benchmark --rows vilt --data scenes:8 --minutes 0 --out {out}", "{out}", ""),
        ("demo --out {out}", "{out}", ""),
        ("import vit {out}/vit.pth --out {out}", "{out}", ""),
    ],
    ids=lambda value: value.split()[0] if " " in value else "",
)  # fmt: skip
def test_no_command_writes_where_another_process_writes(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, folder: str, file: str
):
    folders = {"out": tmp_path / "out", "run": imported}
    locked_folder = Path(folder.format(**folders))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(locked_folder), file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        before = contents(imported) | contents(locked_folder.parent)
        line = error_line(words.format(**folders).split(), capsys)
        assert f"is being written by another process (pid {holder.pid} on " in line and str(locked_folder) in line
        assert contents(imported) | contents(locked_folder.parent) == before
    finally:
        holder.communicate("\n", timeout=60)


def without_a_checkpoint(pretrained: Path, out: Path) -> Path:
    """A run folder as it is after a kill before the first checkpoint."""
    shutil.copytree(pretrained, out)
    for name in (CHECKPOINT, PREVIOUS, "model.safetensors", "report.html"):
        (out / name).unlink()
    return out


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_a_message(pretrained: Path, tmp_path: Path, capsys):
    out = without_a_checkpoint(pretrained, tmp_path / "run")
    before = contents(out)
    line = error_line([*pretrain(out), "--seed", "5"], capsys)
    assert "seed = 0, not 5" in line and "another --out" in line
    assert "model.dim = 16, not 32" in error_line([*pretrain(out), "--model.dim", "32"], capsys)
    assert contents(out) == before
    assert main(pretrain(out, "--workers", "0")) == 0
    assert "stopped before its first checkpoint: starting again from step 0" in capsys.readouterr().out
    assert rows(out) == rows(pretrained)


def test_a_damaged_checkpoint_of_a_finished_run_costs_only_its_last_steps(pretrained: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    data = bytearray((out / CHECKPOINT).read_bytes())
    data[-7] ^= 4
    (out / CHECKPOINT).write_bytes(data)
    assert main(pretrain(out, "--workers", "0")) == 0
    output = capsys.readouterr().out
    assert "is damaged: its tensors are not what was written" in output and "of step 21" in output
    assert "resumes at step 21" in output
    assert (out / "model.safetensors").read_bytes() == (pretrained / "model.safetensors").read_bytes()
    assert rows(out) == rows(pretrained)


def test_damaged_weights_are_an_error_of_every_command_that_reads_them(pretrained: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-2] ^= 64
    (out / "model.safetensors").write_bytes(data)
    for words in (
        ["evaluate", str(out), "--task", "matching"],
        ["export", str(out), "--to", "official", "--out", str(tmp_path / "x.pth")],
        ["finetune", "vqa", "--init_from", str(out), "--data", "scenes:50", "--out", str(tmp_path / "vqa")],
        [*pretrain(tmp_path / "next"), "--init_from", str(out)],
        pretrain(out, "--workers", "0"),
    ):
        line = error_line(words, capsys)
        assert f"{out / 'model.safetensors'} is damaged: its tensors are not what was written" in line
    assert (out / "model.safetensors").read_bytes() == data and not (tmp_path / "x.pth").exists()


DAMAGES = (b"", b"\xff\xfe\x00", b"{", b"[]", b"{}", b"null", b"[" * 4000)


@pytest.mark.slow
def test_a_damaged_run_json_is_a_one_line_error_that_names_it(imported: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    shutil.copytree(imported, out)
    whole = json.loads((out / "run.json").read_text())
    wrong = [
        json.dumps(whole | change).encode() for change in ({"run": 3}, {"facts": []}, {"kind": {}}, {"machine": None})
    ]
    wrong += [
        json.dumps({name: value for name, value in whole.items() if name != removed}).encode()
        for removed in whole
        if removed != "digest"
    ]
    for data in (*DAMAGES, *wrong):
        (out / "run.json").write_bytes(data)
        words = ["evaluate", str(out), "--task", "matching", "--data", "scenes:8", "--device", "cpu"]
        assert str(out / "run.json") in error_line(words, capsys), data


@pytest.mark.parametrize(
    ("path", "value"),
    [("model/num_heads", 4), ("images/mean", [0.1, 0.2, 0.3]), ("heads", ["itm"]), ("labels", ["x"]), ("losses", [])],
)
def test_a_run_whose_config_json_was_changed_is_not_resumed(
    pretrained: Path, tmp_path: Path, path: str, value: object, capsys
):
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    edit_json(out / "config.json", path, value)
    before = contents(out)
    line = error_line([*pretrain(out), "--workers", "0"], capsys)
    assert "run.json and config.json describe different models" in line and str(out) in line
    assert contents(out) == before


@pytest.mark.slow
def test_a_damaged_config_json_is_a_one_line_error_that_names_it(imported: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    shutil.copytree(imported, out)
    whole = json.loads((out / "config.json").read_text())
    changes = (
        {"model": 3},
        {"images": []},
        {"task": {}},
        {"heads": None},
        {"labels": [1]},
        {"version": 2},
        {"more": 1},
    )
    wrong = [(name, {**whole, name: value}) for change in changes for name, value in change.items()]
    wrong += [(name, {key: value for key, value in whole.items() if key != name}) for name in ("model", "images")]
    for words in (
        ["evaluate", str(out), "--task", "retrieval", "--data", "scenes:8", "--device", "cpu"],
        ["export", str(out), "--to", "official", "--out", str(tmp_path / "x.pth")],
        ["finetune", "vqa", "--init_from", str(out), "--data", "scenes:8", "--out", str(tmp_path / "vqa")],
    ):
        for data in DAMAGES:
            (out / "config.json").write_bytes(data)
            assert str(out / "config.json") in error_line(words, capsys), data
        for name, record in wrong:
            (out / "config.json").write_text(json.dumps(record))
            line = error_line(words, capsys)
            assert str(out / "config.json") in line and ("does not match its digest" in line or name in line), (
                name,
                line,
            )
            (out / "config.json").write_text(json.dumps({key: x for key, x in record.items() if key != "digest"}))
            line = error_line(words, capsys)
            assert str(out / "config.json") in line and name in line, (name, line)
    assert not (tmp_path / "x.pth").exists() and not (tmp_path / "vqa").exists()


@pytest.mark.parametrize(
    ("name", "written", "flipped"),
    [
        ("run.json", '"seed": 0', '"seed": 1'),
        ("run.json", '"command": "', '"command": "p'),
        ("run.json", '"digest"', '"digesu"'),
        ("run.json", '"crc32:', '"crc33:'),
        ("config.json", '"num_heads": 2', '"num_heads": 1'),
        ("config.json", '"itm"', '"itc"'),
        ("config.json", '"digest"', '"digesu"'),
        ("config.json", '"crc32:', '"crc33:'),
    ],
)
def test_a_changed_but_well_formed_json_file_is_detected(
    imported: Path, tmp_path: Path, capsys, name: str, written: str, flipped: str
):
    out = tmp_path / "run"
    shutil.copytree(imported, out)
    whole = (out / name).read_text()
    assert written in whole
    (out / name).write_text(whole.replace(written, flipped))
    words = ["evaluate", str(out), "--task", "matching", "--data", "scenes:8", "--device", "cpu"]
    line = error_line(words, capsys)
    assert f"{out / name}: its content does not match its digest: restore the file, or" in line


def test_settings_edited_on_purpose_are_read_if_the_digest_is_removed(imported: Path, tmp_path: Path):
    shutil.copytree(imported, out := tmp_path / "run")
    edit_json(out / "run.json", "run/training/seed", 1)
    assert read_run(out)[0].training.seed == 1
    edit_json(out / "config.json", "images/augment", True)
    assert read_config(out).images.augment


@pytest.mark.parametrize(
    "name", ["skipped.json", "diagnostics.json", "evaluate-x/metrics.json", "evaluate-x/examples.json"]
)
def test_a_damaged_json_file_of_a_report_is_named_in_one_line(imported: Path, tmp_path: Path, name: str, capsys):
    out = tmp_path / "run"
    shutil.copytree(imported, out)
    path, wrong = (
        out / name,
        (b'[{"kind": "answer"}]', b'[{"id": 1}]', b'{"findings": [{}]}', b'{"metrics": {"a": "b"}}'),
    )
    path.parent.mkdir(exist_ok=True)
    readers = {"metrics.json": report.evaluation_tables, "examples.json": report.example_sections}
    for data in (*DAMAGES, *wrong):
        if data == b"[]" and path.name in ("skipped.json", "examples.json"):
            continue  # the valid content of an empty list
        path.write_bytes(data)
        if path.name in readers:
            assert readers[path.name](out) == []
            error = capsys.readouterr().err
            assert f"DamagedFile: {path}: "[:250] in error and error.count("\n") == 1
            continue
        with pytest.raises(DamagedFile) as raised:
            report.findings(out)
        assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_a_damaged_line_of_metrics_jsonl_is_reported_and_the_file_kept(pretrained: Path, tmp_path: Path, capsys):
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    lines = (out / "metrics.jsonl").read_bytes().split(b"\n")
    lines[4] = lines[4][:20]
    (out / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert main(pretrain(out, "--workers", "0")) == 0
    assert "metrics.jsonl, line 5: not the JSON" in capsys.readouterr().out
    assert (out / "metrics.damaged-1.jsonl").read_bytes() == b"\n".join(lines)
    assert rows(out) == [row for i, row in enumerate(rows(pretrained)) if i != 4]


def test_corrupt_captions_does_not_write_into_a_folder_of_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["corrupt-captions", "scenes:8", "--out", str(tmp_path / "out"), "--shard_size", "4"]
    assert main(words) == 0
    before = contents(tmp_path)
    assert "already contains train-00000.tar; give another --out" in error_line([*words, "--seed", "3"], capsys)
    assert contents(tmp_path) == before


def test_an_import_does_not_replace_another_run(imported: Path, tmp_path: Path, capsys):
    (tmp_path / "x.pth").touch()
    before = contents(imported)
    line = error_line(["import", "vit", str(tmp_path / "x.pth"), "--out", str(imported)], capsys)
    assert "holds a training run; give another --out" in line
    assert contents(imported) == before
    shutil.copytree(imported, saved_model := tmp_path / "saved")
    (saved_model / "run.json").unlink()  # as `VLM.save` writes it
    before = contents(saved_model)
    line = error_line(["import", "vit", str(tmp_path / "x.pth"), "--out", str(saved_model)], capsys)
    assert "holds a model that was not imported; give another --out" in line
    assert contents(saved_model) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tmp_path.chmod(0o500)
    assert "Permission denied: check its permissions" in error_line(pretrain(tmp_path / "run"), capsys)
    tmp_path.chmod(0o700)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("cause", ["size", "gone"])
def test_a_run_that_cannot_write_prints_an_error_and_keeps_its_checkpoint(tmp_path: Path, cause: str):
    out = tmp_path / "run"
    words = pretrain(out, "--workers", "0", steps=100_000)
    limit = ["prlimit", "--fsize=150000"] if cause == "size" else []
    if limit and shutil.which("prlimit") is None:
        pytest.skip("no prlimit here")
    process = subprocess.Popen(
        [*limit, sys.executable, "-m", "diptych", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while cause == "gone" and not (out / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    if cause == "gone":
        out.rename(tmp_path / "elsewhere")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2, errors
    (line,) = errors.splitlines()
    assert " cannot be written (" in line and str(out) in line and "then give the same command again" in line
    assert cause == "gone" or not list(out.rglob("*.partial"))


@posix
@pytest.mark.slow
@pytest.mark.parametrize("two_signals", [False, True])
def test_an_evaluation_acknowledges_a_signal_and_ends_within_seconds(imported: Path, tmp_path: Path, two_signals: bool):
    run = tmp_path / "run"
    shutil.copytree(imported, run)
    process = started(["evaluate", str(run), "--task", "matching", "--data", "scenes:200000", "--device", "cpu"])
    deadline = time.monotonic() + 240
    while not list(run.glob("evaluate-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
    at = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)  # the signal goes to its data workers too
    if two_signals:
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if not two_signals else process.returncode) != 0
    assert time.monotonic() - at < 20  # about one second on an idle machine
    lines = errors.splitlines()
    assert "Traceback" not in errors
    assert lines[0].startswith("diptych: SIGTERM: stopping; a second one ends it at once")
    assert (
        two_signals
        or lines[-1]
        == "diptych: interrupted; what is complete stays; the same command continues from there or begins again"
    )
    assert not list(run.glob("evaluate-*/metrics.json"))
    with locked(run):
        pass


@posix
@pytest.mark.slow
def test_a_validation_interrupted_by_a_signal_is_repeated_on_resume(pretrained: Path, tmp_path: Path):
    """Interrupted between the last step and its checkpoint: the resumed run logs the same rows."""
    from diptych.runs import train as training

    out, original = tmp_path / "run", training.validation_means

    def interrupting(*_: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        return {}

    training.validation_means = interrupting
    try:
        with pytest.raises(SystemExit) as error:
            main(pretrain(out, "--workers", "0"))
    finally:
        training.validation_means = original
    assert error.value.code == 130 and "val/itm" not in rows(out)[-1]
    assert main(pretrain(out, "--workers", "0")) == 0
    assert rows(out) == rows(pretrained)
    assert (out / "model.safetensors").read_bytes() == (pretrained / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_damaged_parts_of_capfilt_are_named(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    words = ["capfilt", "scenes:8", "--filter", str(imported), "--device", "cpu", "--workers", "0", "--out", str(out)]
    assert main(words) == 0
    rows_, features = (next(out.glob(f"parts/train-00000{suffix}")) for suffix in (".jsonl", ".npy"))
    settings = out / "capfilt.json"
    whole = {path: path.read_bytes() for path in (rows_, features, settings)}
    for path, data in whole.items():
        head = data[: data.index(b"\n") + 1] if path is rows_ else b""
        for bad in (b"", data[: len(data) // 2], b"\xff" + data[1:], b"{}\n", b'{"key": 1}\n', head * 3):
            next(out.glob("*.tar")).unlink(missing_ok=True)
            path.write_bytes(bad)
            line = error_line(words, capsys)
            assert str(path) in line or (path is rows_ and str(features) in line), (path, bad[:20], line)
            path.write_bytes(data)
            if not list(out.glob("*.tar")):
                assert main(words) == 0
    assert json.loads(settings.read_text())["data"] == "scenes:8"


def test_two_checkpoints_of_one_name_are_not_imported_over_each_other(tmp_path: Path, capsys):
    first = GOLDEN_CASES / "vit" / "checkpoint.pth"
    state = torch.load(first, weights_only=True)
    torch.save(
        {name: value + 1 if value.is_floating_point() else value for name, value in state.items()},
        tmp_path / first.name,
    )

    def words(file: Path) -> list[str]:
        return ["import", "vit", str(file), "--num_heads", "4", "--out", str(tmp_path / "run")]

    assert main(words(first)) == 0
    before = contents(tmp_path / "run")
    assert "holds other weights than this checkpoint's; give another --out" in error_line(
        words(tmp_path / first.name), capsys
    )
    assert contents(tmp_path / "run") == before
    (tmp_path / "run" / "model.safetensors").write_bytes(before["model.safetensors"][:-9])
    assert main(words(first)) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before["model.safetensors"]
