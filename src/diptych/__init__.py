"""Diptych: a vision-language workbench; published systems built from one set of parts, trained and compared.

The Python API is in `diptych.api`. It is imported with its first use, so that `import diptych` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.api import VLM, Prediction, create_model, evaluate, list_images, load, train
    from diptych.checkpoints.digests import CheckpointError
    from diptych.checkpoints.read import WeightsError
    from diptych.config.tasks import VQA, Captioning, Classification, Evaluation, Matching, Retrieval
    from diptych.data.sources.base import BadSample, DataError, Skipped
    from diptych.inference.saved_model import RunError
    from diptych.inference.token_states import Features, TokenStates
    from diptych.metrics.bootstrap import Scores
    from diptych.protocols import UnsupportedOperation
    from diptych.runs.recipes import list_models

__version__ = "0.2.0"

__all__ = [
    "VLM",
    "VQA",
    "BadSample",
    "Captioning",
    "CheckpointError",
    "Classification",
    "DataError",
    "Evaluation",
    "Features",
    "Matching",
    "Prediction",
    "Retrieval",
    "RunError",
    "Scores",
    "Skipped",
    "TokenStates",
    "UnsupportedOperation",
    "WeightsError",
    "__version__",
    "create_model",
    "evaluate",
    "list_images",
    "list_models",
    "load",
    "train",
]

_MODULES = {
    "Captioning": "diptych.config.tasks",
    "Classification": "diptych.config.tasks",
    "VQA": "diptych.config.tasks",
    "BadSample": "diptych.data.sources.base",
    "CheckpointError": "diptych.checkpoints.digests",
    "DataError": "diptych.data.sources.base",
    "Evaluation": "diptych.config.tasks",
    "Features": "diptych.inference.token_states",
    "Matching": "diptych.config.tasks",
    "Retrieval": "diptych.config.tasks",
    "RunError": "diptych.inference.saved_model",
    "Scores": "diptych.metrics.bootstrap",
    "Skipped": "diptych.data.sources.base",
    "TokenStates": "diptych.inference.token_states",
    "UnsupportedOperation": "diptych.protocols",
    "WeightsError": "diptych.checkpoints.read",
    "list_models": "diptych.runs.recipes",
}
"""The modules of public names that are not in `diptych.api`."""


def __getattr__(name: str) -> Any:
    """A public name, imported with its first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "diptych.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
