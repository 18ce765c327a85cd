"""Files of tensors that carry a digest: whatever bit is flipped, it is noticed; files of others are read as they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diptych.checkpoints import digests
from diptych.checkpoints.digests import CheckpointError, Damaged
from diptych.training import checkpoint
from diptych.training.checkpoint import CHECKPOINT, MODEL
from diptych.training.recovery import settle

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
def test_every_flipped_bit_of_a_file_is_noticed(tmp_path: Path, metadata: dict[str, str] | None, every: int):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, digests.with_digest(TENSORS, metadata))
    tensors, told = digests.read(path)
    assert told == (metadata or {}) and tensors.keys() == TENSORS.keys()
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


def test_a_flipped_bit_in_the_state_is_noticed_by_who_reads_only_that(tmp_path: Path):
    path = tmp_path / CHECKPOINT
    save_file(TENSORS, path, digests.with_digest(TENSORS, {"rest": '{"step": 3}'}))
    data = path.read_bytes()
    place = data.index(b"step")
    path.write_bytes(data[:place] + b"stop" + data[place + 4 :])
    with pytest.raises(CheckpointError, match="its state is not what was written; remove it"):
        checkpoint.rest(tmp_path)


def test_a_file_of_others_is_read_as_it_is(tmp_path: Path):
    path = tmp_path / MODEL
    for metadata in (None, {"format": "pt"}):
        save_file(TENSORS, path, metadata)
        assert digests.read(path)[0].keys() == TENSORS.keys() and not digests.has_digest(path)


def test_the_digest_hangs_on_names_types_and_shapes_too():
    one = torch.zeros(4)
    same = digests.with_digest({"a": one})
    for other in ({"b": one}, {"a": one.view(2, 2)}, {"a": one.to(torch.int32)}, {"a": one, "b": torch.zeros(0)}):
        assert digests.with_digest(other) != same
    assert digests.with_digest({"a": torch.zeros(8)[::2]}) == same


def test_what_is_no_run_of_ours_is_left_alone(tmp_path: Path):
    assert settle(tmp_path) == "" and not list(tmp_path.iterdir())


def test_a_checkpoint_that_was_written_wrongly_does_not_take_the_place_of_the_one_before(tmp_path, monkeypatch):
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
