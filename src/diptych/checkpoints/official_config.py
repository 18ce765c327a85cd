"""Settings that weight shapes do not show, as a config states them: lookups, and the keys that no lookup used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diptych.checkpoints.read import WeightsError
from diptych.config.spelling import nearest_names
from diptych.config.validation import preview

OfficialConfig = Mapping[str, Any]
"""Settings that cannot be inferred from shapes (num_heads, grid): from the official config, or from the user."""

ARGUMENTS = "arguments"
"""The key under which a config states constructor arguments of the model by their own names."""
SIMILAR = 0.9
"""Similarity (`config.spelling.nearest_names`) from which an unused key is taken for a misspelled one."""


class RecordedConfig(Mapping[str, Any]):
    """A config, and its nested parts, that records which keys were looked up, so that unused ones can be reported."""

    def __init__(self, values: Mapping[str, Any]):
        self.values_by_key = values
        self.looked_up: set[str] = set()
        self.parts = {key: RecordedConfig(value) for key, value in values.items() if isinstance(value, Mapping)}

    @classmethod
    def of(cls, config: OfficialConfig) -> RecordedConfig:
        """The config itself if it records lookups, else one that does."""
        return config if isinstance(config, cls) else cls(config)

    def __getitem__(self, key: str) -> Any:
        self.looked_up.add(key)
        return self.parts[key] if key in self.parts else self.values_by_key[key]

    def __contains__(self, key: object) -> bool:
        self.looked_up.add(str(key))
        return key in self.values_by_key

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_key)

    def __or__(self, more: Mapping[str, Any]) -> RecordedConfig:
        """The config with more keys; lookups are recorded in this one."""
        merged = RecordedConfig({**self.values_by_key, **more})
        merged.looked_up = self.looked_up
        merged.parts |= {key: part for key, part in self.parts.items() if key not in more}
        return merged

    def __len__(self) -> int:
        return len(self.values_by_key)

    def unused(self, path: str = "") -> dict[str, Any]:
        """Keys that no lookup used, by their dotted paths, and their values; constructor arguments are always used."""
        keys: dict[str, Any] = {}
        for key, value in self.values_by_key.items():
            if key == ARGUMENTS and not path:
                continue
            if key not in self.looked_up:
                keys[path + key] = value
            elif key in self.parts:
                keys |= self.parts[key].unused(f"{path}{key}.")
        return keys

    def check_spelling(self, path: str = "") -> None:
        """Raises WeightsError for an unused key that is nearly one that was looked up and is absent."""
        absent = sorted(self.looked_up - self.values_by_key.keys())
        for key in self.values_by_key:
            if key in self.looked_up:
                if key in self.parts and (path or key != ARGUMENTS):
                    self.parts[key].check_spelling(f"{path}{key}.")
            elif near := nearest_names(key, absent, similarity=SIMILAR):
                raise WeightsError(f"{path}{key} is no key of this config; did you mean {path}{near[0]}?")


def stated(config: OfficialConfig, argument: str, *keys: str) -> Any:
    """The value that a config states for a constructor argument, or None.

    It is the argument's own under "arguments", else that of the first of the official `keys` that the config has. A
    dotted key ("vision.heads") is nested.
    """
    values = [_nested(config, key) for key in (f"{ARGUMENTS}.{argument}", *keys)]
    return next((value for value in values if value is not None), None)


def _nested(config: OfficialConfig, path: str) -> Any:
    part, dot, rest = path.partition(".")
    value = config.get(part)
    if not dot:
        return value
    return _nested(value, rest) if isinstance(value, Mapping) else None


def check_fixed(config: OfficialConfig, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises WeightsError for a key of `fixed` whose value is not one of those that the model supports."""
    for key, values in fixed.items():
        if (value := _nested(config, key)) is not None and value not in values:
            expected = " or ".join(map(repr, values))
            raise WeightsError(f"config: {key} is {preview(value)}; expected {expected}: nothing else is supported")
