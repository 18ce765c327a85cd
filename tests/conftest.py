"""Test configuration: all annotated types and shapes of diptych are checked while tests run.

The import hook must be installed before diptych is first imported. An int is accepted as a float, as in PEP 484.
"""

import gc
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

# one thread per process: xdist's workers and pyright use the other cores, and threads that wait for a core spin
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHAPED = re.compile(r"\b(Bool|Complex|Float|Inexact|Int|Integer|Num|Real|Shaped|U?Int\d+|UInt)\[")
jaxtyped = jaxtyping.jaxtyped


def checked(typechecker: Callable[[Callable], Callable]) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped` for functions whose annotations have shapes; for others the type checker only.

    Comparing shapes between arguments takes ten times as long as checking types: a third of the tests' time. Functions
    whose annotations cannot be resolved yet, as in a class that is being defined, are left to jaxtyping too.
    """

    def decorate(function: Any) -> Any:
        annotations = dict(getattr(function, "__annotations__", {}))
        shaped = any(SHAPED.search(str(annotation)) for annotation in annotations.values())
        if inspect.isfunction(function) and not shaped:
            with suppress(NameError, BeartypeDecorHintException):
                get_type_hints(function)
                wrapped = typechecker(function)
                wrapped.__annotations__ = function.__annotations__ = annotations  # beartype replaces strings by types
                return wrapped
            function.__annotations__ = annotations
        return jaxtyped(typechecker=typechecker)(function)

    return decorate


jaxtyping.jaxtyped = checked  # type: ignore[assignment]
install_import_hook(
    "diptych", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, violation_type=TypeError))"
)

# fixtures, which import diptych
from tests.parity.goldens import copied, golden_folder, vilt_folder, vit_folder  # noqa: E402, F401
from tests.runs.tiny_runs import pretrained, vqa  # noqa: E402, F401

# the duration of an example depends on the machine
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")


MAX_QUICK_CASES = 3  # of a parametrised test, in `make check`


@pytest.fixture(scope="session", autouse=True)
def own_feature_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor write the user's cache of frozen features."""
    os.environ.setdefault("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in the processes that tests start (`tiny_runs.ENVIRONMENT`), whose results must be bit-identical."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Seeds torch's generator, so that a test's draws do not depend on the tests before it."""
    import torch  # not earlier: it reads OMP_NUM_THREADS on import

    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Leaves what was imported and collected out of garbage collections, each of which would visit all of it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what `make check` leaves out: the tests that use trained runs, and most cases of long lists.

    Of a parametrised test it runs the cases that a `quick("a", "b-*")` mark lists, else MAX_QUICK_CASES, evenly spaced.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for same_test in cases.values():
        n, quick_cases = len(same_test), min(len(same_test), MAX_QUICK_CASES)
        chosen = {i * n // quick_cases for i in range(quick_cases)}
        for i, item in enumerate(same_test):
            if i not in chosen and not item.get_closest_marker("quick"):
                item.add_marker("slow")
    for item in items:
        quick = item.get_closest_marker("quick")
        if quick and not any(fnmatchcase(item.callspec.id, case) for case in quick.args):  # type: ignore[attr-defined]
            item.add_marker("slow")
        if {"pretrained", "vqa"} & set(getattr(item, "fixturenames", ())):  # a trained run takes seconds
            item.add_marker("slow")
