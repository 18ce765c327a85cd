"""Every reader of untrusted files, on damaged valid inputs: a value or the reader's own error, and no other outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.fuzz import input_of
from tests.campaign.mutations import mutated, png_sealed, tar_sealed
from tests.campaign.readers import COMMANDS, QUICK, Reader, image_bytes, tar_of

HERE = Path(__file__).parent
SEED = int(os.environ.get("DIPTYCH_CAMPAIGN_SEED", "0"))
RECORDS = os.environ.get("DIPTYCH_CAMPAIGN", "")  # the folder for the counts
INPUTS, OF_COMMANDS, SECONDS = 1000, 20, 60  # a reader stops after its inputs or seconds, whichever comes first


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "inputs"), [*((name, OF_COMMANDS) for name in COMMANDS), *((name, INPUTS) for name in QUICK)]
)
def test_every_input_gives_a_value_or_the_readers_own_error(reader: str, inputs: int, tmp_path: Path):
    out = Path(RECORDS or tmp_path) / f"fuzz {reader}.json"
    words = [reader, "--inputs", str(inputs), "--seed", str(SEED), "--seconds", str(SECONDS), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign.fuzz", *words], capture_output=True, text=True, timeout=900
    )
    assert out.exists(), done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert not record["failed"], json.dumps(record["failures"], indent=1)
    assert done.returncode == 0 and record["values"] + record["refused"] == record["inputs"] > 0
    if reader in QUICK:  # a run skips a damaged line of its log, or a damaged checkpoint
        assert record["refused"] > 0, "no input raised: nothing was damaged"


def read_strictly(path: Path) -> None:
    if path.read_bytes() != b"valid":
        raise ValueError("no such thing")


def hostile(path: Path) -> None:
    """A reader with every fault that the campaign looks for, chosen by the input."""
    data = path.read_bytes()
    if data == b"valid":
        return
    if data == b"code":
        (path.parent / "canary").write_text("")
    if data == b"outside":
        (path.parent.parent / "secret.jpg").read_bytes()
    if data == b"write":
        (path.parent.parent / "written").write_text("")
    if data == b"process":
        subprocess.run(["true"])
    if data == b"memory":
        assert len(b"x" * (128 << 20))
    if data == b"hang":
        while True:
            pass
    if data == b"crash":
        os.abort()
    if data == b"bug":
        raise KeyError("of ours")
    raise ValueError("refused")


FAULTS = {
    b"code": "code was run",
    b"outside": "secret.jpg",
    b"write": "written",
    b"process": "subprocess.Popen",
    b"memory": "MiB",
    b"hang": "SIGPROF",
    b"crash": "SIGABRT",
    b"bug": "KeyError: 'of ours'",
}
RUNNER = """
import json, sys, tempfile, time
from functools import partial
from pathlib import Path
from tests.campaign import fuzz
from tests.campaign.readers import Reader, under
from tests.campaign.test_fuzz import FAULTS, hostile
fuzz.SECONDS, fuzz.MEMORY = 2, 64 << 20
for fault in [*FAULTS, b"refused"]:
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "case").mkdir()
        (Path(made) / "secret.jpg").write_text("")
        reader = Reader("hostile", [b"valid"], partial(under, "a"), hostile, (ValueError,), crafted=[b"valid", fault, b"no"])
        outcomes = fuzz.campaign(reader, Path(made), 0, range(3), time.monotonic() + 60)
        print(json.dumps([fault.decode(), outcomes]))
"""


@pytest.mark.slow
def test_the_campaign_detects_each_kind_of_fault():
    done = subprocess.run([sys.executable, "-c", RUNNER], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    records = dict(map(json.loads, done.stdout.splitlines()))
    assert records.pop("refused")["failed"] == 0 and records.keys() == {fault.decode() for fault in FAULTS}
    for fault, why in FAULTS.items():
        counts = records[fault.decode()]
        assert (counts["inputs"], counts["values"]) == (3, 1), (fault, counts)
        failures = {one["number"]: one["why"] for one in counts["failures"]}
        assert why in failures[1], (fault, failures)
        # the canary file stays for the next input; the other faults leave no trace
        assert failures.keys() == ({1, 2} if fault == b"code" else {1}), (fault, failures)


def test_an_input_depends_only_on_seed_and_number():
    reader = Reader("x", [image_bytes("PNG"), b"12 dogs"], lambda folder, data: folder, read_strictly, seal=png_sealed)
    first = [input_of(reader, 3, number) for number in range(50)]
    assert first == [input_of(reader, 3, number) for number in range(50)]
    assert len(set(first)) > 40 and first != [input_of(reader, 4, number) for number in range(50)]


def test_checksums_are_repaired():
    import random

    png, tar = image_bytes("PNG"), tar_of(0, {"a.txt": b"a dog"})
    assert png_sealed(png) == png and tar_sealed(tar) == tar
    damaged = bytearray(png)
    damaged[20] ^= 1
    assert png_sealed(bytes(damaged)) != bytes(damaged) and png_sealed(bytes(damaged))[:29] == bytes(damaged)[:29]
    draw = random.Random(0)
    assert sum(mutated(png, [tar], [], draw) != png for _ in range(50)) > 45
