"""What a write changes of a buffer in place, so that it can be taken back."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

AnyArray = npt.NDArray[Any]


class Undo:
    """Old rows and attributes; a step of `compressarray.writing`.

    Whatever is about to be changed is kept here first.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[AnyArray, Any, AnyArray]] = []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def keep(self, key: Any, *arrays: AnyArray) -> None:
        """Keep what some arrays hold under a key, of which none is a single element."""
        self._rows += [(array, key, array[key].copy()) for array in arrays]

    def keep_attributes(self, owner: object, *names: str) -> None:
        """Keep what some attributes of an object are."""
        held = vars(owner)
        self._attributes.append((held, {name: held[name] for name in names}))

    def finish(self) -> None:
        """Do nothing: all is written."""

    def roll_back(self) -> None:
        """Have the old rows and attributes."""
        # the latest first: a row may have been kept twice
        for array, key, values in reversed(self._rows):
            array[key] = values
        for held, values_of in reversed(self._attributes):
            held.update(values_of)


class Settled:
    """An attribute that no write which was cut off is seen in.

    Its owner has a ``_writer``, and the value under the same name in its ``__dict__``, where
    Stable-Baselines3 looks for some of them too.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        held = vars(instance)
        held["_writer"].settle()
        try:
            return held[self._name]
        except KeyError:
            raise AttributeError(
                f"a {owner.__name__} has no attribute {self._name!r} yet"
            ) from None

    def __set__(self, instance: Any, value: Any) -> None:
        held = vars(instance)
        held["_writer"].settle()
        held[self._name] = value
