"""Checks every annotated shape and type of diptych while tests run. Must come before diptych is first imported.

An int may stand where a float is asked for, as PEP 484 has it.
"""

import inspect
import os
import re
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, get_type_hints

import jaxtyping
import pytest
from beartype.roar import BeartypeDecorHintException
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from jaxtyping import install_import_hook

# one thread a process: xdist's workers, or pyright beside them, want the other cores, and threads that wait for a core spin
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHAPED = re.compile(r"\b(Bool|Complex|Float|Inexact|Int|Integer|Num|Real|Shaped|U?Int\d+|UInt)\[")
jaxtyped = jaxtyping.jaxtyped


def checked(typechecker: Callable[[Callable], Callable]) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped` for functions whose annotations have shapes; for others the type checker alone.

    Comparing shapes between arguments takes ten times as long as checking types: a third of the tests' time. Functions
    whose annotations are not resolved yet, as those of a class that is being defined, are left to jaxtyping too.
    """

    def decorate(made: Any) -> Any:
        annotations = dict(getattr(made, "__annotations__", {}))
        if inspect.isfunction(made) and not any(SHAPED.search(str(annotation)) for annotation in annotations.values()):
            with suppress(NameError, BeartypeDecorHintException):
                get_type_hints(made)
                wrapped = typechecker(made)
                wrapped.__annotations__ = made.__annotations__ = annotations  # beartype puts types in place of strings
                return wrapped
            made.__annotations__ = annotations
        return jaxtyped(typechecker=typechecker)(made)

    return decorate


jaxtyping.jaxtyped = checked  # type: ignore[assignment]
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
