"""Attributes of a buffer that take effect when they are set, and those that cannot be set."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

import numpy as np

from compressarray.replay.checks import checked_number

T = TypeVar("T")


class Fixed(Generic[T]):
    """An attribute that is set once, where its object is built."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Fixed[T]: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.__dict__[self._name]

    def __set__(self, instance: Any, value: T) -> None:
        if self._name in instance.__dict__:
            raise AttributeError(
                f"{self._name} of a {type(instance).__name__} cannot be changed: what is stored "
                f"was arranged for {self._name}={instance.__dict__[self._name]!r}. Build another "
                f"one with {self._name}={value!r}"
            )
        instance.__dict__[self._name] = value


class Adjustable:
    """A number that may be set at any time, from ``low`` to ``high``."""

    def __init__(self, low: float, high: float = np.inf) -> None:
        self._low, self._high = low, high

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Adjustable: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> float: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance.__dict__[self._name]

    def __set__(self, instance: Any, value: float) -> None:
        instance.__dict__[self._name] = checked_number(self._name, value, self._low, self._high)
