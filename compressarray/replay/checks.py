"""What users may get wrong in plain arguments."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.replay.layout import as_array, for_kernels
from compressarray.replay.resets import Mode

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_KERNEL_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_MODES: tuple[Mode, ...] = ("same_step", "next_step", "disabled")
_NO_INFO: Mapping[str, Any] = MappingProxyType({})


def checked_int(name: str, value: Any, least: int) -> int:
    """Return a whole number that is at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number") from None
    if number < least:
        raise ValueError(f"{name}={number} must be at least {least}")
    return number


def checked_number(name: str, value: Any, low: float, high: float = np.inf) -> float:
    """Return a finite number from ``low`` to ``high``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} must be a number") from None
    if not low <= number <= high or number == np.inf:
        limit = "finite" if high == np.inf else f"at most {high}"
        raise ValueError(f"{name}={value} must be at least {low} and {limit}")
    return number


def checked_generator(seed: Any) -> np.random.Generator:
    """Return a generator, made from a seed where it is not one."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed={seed!r} is none: {error}") from None


def checked_mode(mode: Any) -> Mode:
    """Return the name of an autoreset mode, given by name or as Gymnasium's enum."""
    name = str(getattr(mode, "value", mode)).lower()
    for known in _MODES:
        if name.replace("_", "") == known.replace("_", ""):
            return known
    raise ValueError(f"autoreset_mode={mode!r} must be one of {', '.join(map(repr, _MODES))}")


def checked_info(info: Any, mode: Mode) -> Mapping[str, Any]:
    """Return a step's info, an empty one for None; refuse what contradicts the autoreset mode."""
    if info is None:
        return _NO_INFO
    if type(info) is not dict and not isinstance(info, Mapping):  # the former takes no time
        raise TypeError(
            f"info is a {type(info).__name__}; it must be the dict that a Gymnasium vector "
            "environment's step returns. Stable-Baselines3's list of dicts has an episode's last "
            "observation in infos[lane]['terminal_observation']: pass {'final_obs': ..., "
            "'_final_obs': dones} with those, as an object array"
        )
    if "final_observation" in info and "final_obs" not in info:
        raise ValueError(
            "info has 'final_observation', as Gymnasium had it before 1.0; pass info with its "
            "value under 'final_obs', and with autoreset_mode='same_step'"
        )
    if mode != "same_step" and "final_obs" in info:
        raise ValueError(
            f"info has 'final_obs', as only an environment in the mode SAME_STEP gives it, and "
            f"this buffer was built with autoreset_mode={mode!r}: build it with "
            "autoreset_mode='same_step' (leave info out if next_obs has the episodes' last "
            "observations already)"
        )
    return info


def checked_rewards(reward: Any, n: int) -> npt.NDArray[np.floating[Any]]:
    """Return one reward for each lane in float32 or float64, no copy where they are that already.

    Those that float32 does not hold may be infinite.
    """
    values = as_array("reward", reward)
    if values.shape != (n,):
        raise ValueError(f"reward has shape {values.shape}; {n} lanes need {(n,)}")
    if values.dtype in _KERNEL_FLOATS:
        return for_kernels(values)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"reward has dtype {values.dtype}; it must be real numbers")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def checked_bools(name: str, flags: Any, n: int) -> Bools:
    """Return one flag for each lane, a copy."""
    values: AnyArray = as_array(name, flags).copy()
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}; {n} lanes need {(n,)}")
    if values.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {values.dtype}; it must be bool")
    return values


def checked_lanes(lanes: Any, n: int) -> npt.NDArray[np.int64]:
    """Return numbers of lanes, given by number or as a mask; None stands for all."""
    numbers = np.arange(n) if lanes is None else np.asarray(lanes)
    if numbers.dtype == np.bool_ and numbers.shape == (n,):
        numbers = np.flatnonzero(numbers)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TypeError(
            f"lanes={lanes!r} must be one sequence of whole numbers, or a mask of {n} bools"
        )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n:
        raise IndexError(f"lanes={lanes!r} must be from 0 to {n - 1}")
    if len(np.unique(numbers)) != len(numbers):
        raise ValueError(f"lanes={lanes!r} names a lane twice")
    return numbers.astype(np.int64)


def checked_names(index: Any) -> npt.NDArray[np.int64]:
    """Return names of transitions, of any shape."""
    names = as_array("index", index.detach().cpu() if hasattr(index, "detach") else index)
    if names.size and names.dtype.kind not in "iu":
        raise TypeError(f"index holds {names.dtype}; it must hold the integers of batch.index")
    return names.astype(np.int64)


def checked_values(
    what: str, index: Any, given: Any
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return names of transitions and a number for each, flat; a tensor's come to the CPU."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    names, values = checked_names(index), as_array(what, given)
    if names.shape != values.shape:
        raise ValueError(f"index has shape {names.shape}, and {what} have {values.shape}")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{what} hold {values.dtype}; they must be real numbers")
    return names.reshape(-1), values.reshape(-1).astype(np.float64)


def checked_priorities(
    index: Any, priorities: Any
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return names of transitions and their priorities, flat; a tensor's values come to the CPU."""
    names, values = checked_values("priorities", index, priorities)
    wrong = ~((values >= 0) & (values < np.inf))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"priority {values[place]} at position {place} must be finite and not negative; pass "
            "the absolute values of errors"
        )
    return names, values


def scaled_priorities(
    values: npt.NDArray[np.float64], epsilon: float, alpha: float, n_cells: int
) -> npt.NDArray[np.float64]:
    """Return ``(values + epsilon) ** alpha``; refuse what ``n_cells`` of cannot be summed."""
    with np.errstate(over="ignore"):
        scaled: npt.NDArray[np.float64] = (values + epsilon) ** alpha
    most = np.finfo(np.float64).max / n_cells
    wrong = ~(scaled <= most)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"priority {values[place]} at position {place}, with epsilon={epsilon} and to the "
            f"power of alpha={alpha}, is over {most:.3g}: the sum of all would overflow. Clip "
            "priorities"
        )
    return scaled
