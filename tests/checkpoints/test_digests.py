"""Digests of safetensors files: every flipped bit is detected; files without a digest are read unchecked."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diptych.checkpoints import digests
from diptych.checkpoints.digests import CheckpointError, Damaged
from diptych.training import checkpoint
from diptych.training.checkpoint import CHECKPOINT, MODEL
from diptych.training.recovery import restore_previous_checkpoint

TENSORS = {
    "a": torch.arange(3.0), "b": torch.tensor(True), "c": torch.zeros(0, 2), "d": torch.ones(2, dtype=torch.bfloat16),
}  # fmt: skip


def flips(data: bytes, every: int = 1):
    for bit in range(0, 8 * len(data), every):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.quick("*-11")
@pytest.mark.parametrize("every", [1, 11])
@pytest.mark.parametrize("metadata", [None, {"rest": '{"step": 3}'}], ids=["no metadata", "metadata"])
def test_every_flipped_bit_of_a_file_is_detected(tmp_path: Path, metadata: dict[str, str] | None, every: int):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, digests.with_digest(TENSORS, metadata))
    tensors, read_metadata = digests.read(path)
    assert read_metadata == (metadata or {}) and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], t) for name, t in TENSORS.items())
    data = path.read_bytes()
    for changed in flips(data, every):
        path.write_bytes(changed)
        for use in (digests.read, digests.check):
            with pytest.raises(Damaged, match=r"x\.safetensors"):
                use(path)
    for length in range(0, len(data), every):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged):
            digests.check(path)


def test_damage_of_the_metadata_is_detected_without_reading_the_tensors(tmp_path: Path):
    path = tmp_path / CHECKPOINT
    save_file(TENSORS, path, digests.with_digest(TENSORS, {"rest": '{"step": 3}'}))
    data = path.read_bytes()
    start = data.index(b"step")
    path.write_bytes(data[:start] + b"stop" + data[start + 4 :])
    with pytest.raises(CheckpointError, match="its state is not what was written; remove it"):
        checkpoint.read_training_state(tmp_path)


def test_a_file_without_a_digest_is_read(tmp_path: Path):
    path = tmp_path / MODEL
    for metadata in (None, {"format": "pt"}):
        save_file(TENSORS, path, metadata)
        assert digests.read(path)[0].keys() == TENSORS.keys() and not digests.has_digest(path)


def test_the_digest_depends_on_names_dtypes_and_shapes_too():
    one = torch.zeros(4)
    same = digests.with_digest({"a": one})
    for other in ({"b": one}, {"a": one.view(2, 2)}, {"a": one.to(torch.int32)}, {"a": one, "b": torch.zeros(0)}):
        assert digests.with_digest(other) != same
    assert digests.with_digest({"a": torch.zeros(8)[::2]}) == same


def test_a_folder_that_is_not_a_run_is_not_changed(tmp_path: Path):
    assert restore_previous_checkpoint(tmp_path) == "" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_checkpoint_that_was_written_wrongly_does_not_replace_the_previous_one(tmp_path, monkeypatch):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    checkpoint.save(tmp_path, module, optimizer, {"step": 1})
    before = (tmp_path / CHECKPOINT).read_bytes()

    def wrongly(tensors, path, metadata=None):
        save_file({name: t + 1 for name, t in tensors.items()}, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", wrongly)
    with pytest.raises(Damaged):
        checkpoint.save(tmp_path, module, optimizer, {"step": 2})
    assert (tmp_path / CHECKPOINT).read_bytes() == before and not list(tmp_path.glob("*.partial"))
