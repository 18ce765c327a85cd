"""Checks every annotated shape and type of diptych while tests run. Must come before diptych is first imported.

An int may stand where a float is asked for, as PEP 484 has it.
"""

import os
from fnmatch import fnmatchcase

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from jaxtyping import install_import_hook

# one thread a process: xdist's workers, or pyright beside them, want the other cores, and threads that wait for a core spin
os.environ.setdefault("OMP_NUM_THREADS", "1")

install_import_hook("diptych", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# fixtures, which import diptych
from tests.parity.goldens import copied, golden_folder, vilt_folder, vit_folder  # noqa: E402, F401
from tests.runs.tiny_runs import pretrained, vqa  # noqa: E402, F401

# how long an example takes is the machine's affair
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_kept_at_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What frozen networks see in tests is not kept among what a user's runs saw, nor found there."""
    os.environ.setdefault("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("seen")))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in the processes that tests start (`tiny_runs.ENVIRONMENT`), with which they are compared to the bit."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Every test draws the same from torch's own generator, whichever tests ran before it."""
    import torch  # not sooner: it reads OMP_NUM_THREADS when it is imported

    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`quick("a", "b-*")` above a parametrised test: its other cases are slow, as is what uses a trained run."""
    for item in items:
        quick = item.get_closest_marker("quick")
        if quick and not any(fnmatchcase(item.callspec.id, case) for case in quick.args):  # type: ignore[attr-defined]
            item.add_marker("slow")
        if {"pretrained", "vqa"} & set(getattr(item, "fixturenames", ())):  # a trained run takes seconds
            item.add_marker("slow")
