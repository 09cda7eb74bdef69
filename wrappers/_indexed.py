"""What the two ``IndexedFrameStack`` wrappers share: spaces, padding, recorded arguments."""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections import OrderedDict
from typing import Any, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space
from gymnasium.wrappers.utils import create_zero_array
from numpy.typing import NDArray

from compressarray import DiffFrameArray

FrameSpace: TypeAlias = Box | Discrete

DEFAULT_CAPACITY = 100_000

# One below int64's maximum: `Box.sample` adds one to an integer `high`. The indices that `pin`
# reserves start here and go down.
HIGHEST_INDEX = int(np.iinfo(np.int64).max) - 1

# Loops that run environments for another process. Gymnasium's worker may be replaced by the user's
# own function, but the process keeps its name.
_WORKER_PROCESS_NAME = re.compile(r"Worker<.*>-\d+")
_WORKER_MODULES = frozenset(
    {
        "gymnasium.vector.async_vector_env",
        "stable_baselines3.common.vec_env.subproc_vec_env",
    }
)


def index_space(stack_size: int) -> Box:
    """Return the space of one stack of frame indices, reserved ones included."""
    return Box(low=0, high=HIGHEST_INDEX, shape=(stack_size,), dtype=np.int64)


def frame_space(space: Space[Any], key: str | None) -> FrameSpace:
    """Return the space of one frame: `space` itself, or its entry `key` where it is a Dict.

    Raises
    ------
    TypeError
        If the frame would be neither a Box nor a Discrete.
    ValueError
        If `key` and `space` do not go together, or the observations are frame indices already.
    """
    if key is not None:
        if not isinstance(space, Dict):
            raise ValueError(
                f"key={key!r} chooses one image of a Dict observation, but the observation space "
                f"is {space}. Leave key out."
            )
        if key not in space.spaces:
            raise ValueError(
                f"key={key!r} is not in the observation space, whose keys are {list(space.spaces)}."
            )
        chosen = space.spaces[key]
    else:
        chosen = space
        if isinstance(space, Dict):
            raise TypeError(
                f"IndexedFrameStack stores one frame per observation, but the observation space "
                f"is {space}. Pass key=... to choose one of {list(space.spaces)}."
            )
    if not isinstance(chosen, (Box, Discrete)):
        where = "the observation space" if key is None else f"its entry {key!r}"
        raise TypeError(
            f"IndexedFrameStack stores Box and Discrete observations, but {where} is {chosen}. "
            "Flatten or transform the observation first."
        )
    if _holds_indices(chosen):
        raise ValueError(
            f"The observations are frame indices already ({chosen}): IndexedFrameStack was applied "
            "inside. Apply it once; for a vector environment outside, as "
            "wrappers.vector.IndexedFrameStack."
        )
    return chosen


def _holds_indices(space: FrameSpace) -> bool:
    return (
        isinstance(space, Box)
        and space.dtype == np.int64
        and space.low.size > 0
        and bool(np.all(space.low == 0) and np.all(space.high == HIGHEST_INDEX))
    )


def frame_shape(space: FrameSpace, squeeze: bool) -> tuple[int, ...]:
    """Return the shape of one stored frame; a Discrete observation is a frame without axes."""
    shape = space.shape if isinstance(space, Box) else ()
    return tuple(length for length in shape if length != 1) if squeeze else shape


def check_stack_size(stack_size: int) -> int:
    """Return `stack_size` as a plain int, or raise as ``FrameStackObservation`` does."""
    if not np.issubdtype(type(stack_size), np.integer):
        raise TypeError(
            f"stack_size={stack_size!r} must be an integer, not a {type(stack_size).__name__}."
        )
    if stack_size < 1:
        raise ValueError(f"stack_size={stack_size} must be at least 1; use 1 for no stacking.")
    return int(stack_size)


def check_capacity(capacity: int, least: int, why: str) -> int:
    """Return `capacity` as a plain int, or refuse one that cannot hold what a step emits."""
    if not np.issubdtype(type(capacity), np.integer):
        raise TypeError(
            f"capacity={capacity!r} must be an integer, not a {type(capacity).__name__}."
        )
    if capacity < least:
        raise ValueError(
            f"capacity={capacity} frames per lane must be at least {least}: {why}. "
            f"Use capacity={least} or more; 2 * T + stack_size keeps the last T steps."
        )
    return int(capacity)


def recorded_arguments(
    *,
    stack_size: Any,
    capacity: Any,
    padding_type: Any,
    codec: Any,
    gop_length: Any,
    key: Any,
    squeeze: Any,
) -> dict[str, Any]:
    """Return constructor arguments as plain values, which compare and can be written as JSON."""
    return {
        "stack_size": _plain(stack_size),
        "capacity": _plain(capacity),
        "padding_type": _plain(padding_type),
        "codec": codec.get_config() if hasattr(codec, "get_config") else codec,
        "gop_length": _plain(gop_length),
        "key": key,
        "squeeze": bool(squeeze),
    }


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def padding_frame(padding_type: Any, space: FrameSpace) -> NDArray[Any] | None:
    """Return the frame that `padding_type` stands for, None where the first frame is repeated.

    Numbers and nested lists of them stand for frames too, since that is how a padding frame is
    recorded.

    Raises
    ------
    ValueError
        If `padding_type` is neither "reset" nor "zero" nor a frame in `space`.
    """
    if isinstance(padding_type, str):
        if padding_type == "reset":
            return None
        if padding_type == "zero":
            return np.asarray(create_zero_array(space)).astype(space.dtype)
    else:
        frame = padding_type
        if isinstance(space, Box) and not isinstance(frame, np.ndarray):
            frame = _from_plain(frame, space)
        if frame is not None and frame in space:
            return np.array(frame, dtype=space.dtype)
    raise ValueError(
        f"padding_type={padding_type!r} must be 'reset', 'zero' or a frame in {space}."
    )


def _from_plain(value: Any, space: Box) -> NDArray[Any] | None:
    """Plain numbers as an array of `space`'s dtype; None where that would change a value."""
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return None
    kinds = {"b": "b", "i": "iu", "u": "iu"}.get(space.dtype.kind, "iuf")
    if array.dtype.kind not in kinds or array.shape != space.shape:
        return None
    if not np.all((array >= space.low) & (array <= space.high)):
        return None
    return array.astype(space.dtype)


def padding_indices(
    frames: DiffFrameArray,
    padding_type: Any,
    space: FrameSpace,
    batched: Space[Any] | None = None,
) -> NDArray[np.int64] | None:
    """Pin the padding frames and return their indices, one per lane where `batched` is given.

    A vector environment may batch sub-environments of differing bounds, whose frames nearest to
    zero then differ too.
    """
    frame = padding_frame(padding_type, space)
    if frame is None:
        return None
    if batched is not None:
        if isinstance(padding_type, str):
            frame = np.asarray(create_zero_array(batched)).astype(space.dtype)
        else:
            assert batched.shape is not None
            frame = np.broadcast_to(frame, batched.shape)
    return frames.pin(frame.reshape((*frames.lane_shape, *frames.frame_shape)))


def taken_over(
    frames: Any, own: DiffFrameArray, padding: NDArray[np.int64] | None, least: int
) -> tuple[DiffFrameArray, NDArray[np.int64] | None]:
    """Return frames that a wrapper goes on from instead of its own, and its padding in them.

    Raises
    ------
    TypeError
        If they are no `DiffFrameArray` of the dtype.
    ValueError
        If a frame, the lanes or what they keep of each do not fit.
    """
    if not isinstance(frames, DiffFrameArray):
        raise TypeError(
            f"frames is a {type(frames).__name__}; go on from a DiffFrameArray, such as "
            "buffer.frames of a ReplayBuffer that was loaded"
        )
    if frames.dtype != own.dtype:
        raise TypeError(f"frames holds {frames.dtype}, and the environment gives {own.dtype}")
    if frames.shape[1:] != own.shape[1:] or frames.frame_shape != own.frame_shape:
        raise ValueError(
            f"frames has shape {frames.shape}; this wrapper stores (capacity, "
            f"{', '.join(map(str, own.shape[1:]))}): take as many environments of the same kind as "
            "were there when it was saved, and the same key and squeeze"
        )
    if frames.shape[0] < least:
        raise ValueError(
            f"frames keeps {frames.shape[0]} frames a lane, and what a step emits needs {least}"
        )
    return frames, None if padding is None else frames.pin(own.gather(padding))


def as_frames(observation: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return observations as an array of `dtype`, cast as ``FrameStackObservation`` casts them."""
    frames = np.asarray(observation)
    return frames if frames.dtype == dtype else frames.astype(dtype, casting="same_kind")


def with_entry(space: Dict, key: str, entry: Space[Any]) -> Dict:
    """Return a Dict space like `space` whose `key` holds `entry`."""
    # Dict sorts the keys of a plain dict; these are to stay in the order they have.
    return Dict(OrderedDict((name, entry if name == key else old) for name, old in space.items()))


def refuse_worker_process(name: str) -> None:
    """Raise where this code runs in a worker process of a vector environment.

    Detected are the workers of Gymnasium's ``AsyncVectorEnv`` (custom ``worker`` functions
    included) and of Stable-Baselines3's ``SubprocVecEnv``. A process that trains by itself is none
    of them, however it was started.
    """
    if multiprocessing.parent_process() is None:
        return
    process = multiprocessing.current_process().name
    frame = sys._getframe(1)
    in_worker = _WORKER_PROCESS_NAME.fullmatch(process) is not None
    while not in_worker and frame is not None:
        in_worker = frame.f_globals.get("__name__") in _WORKER_MODULES
        frame = frame.f_back  # type: ignore[assignment]
    if in_worker:
        raise RuntimeError(
            f"{name} runs in {process!r}, a worker process of a vector environment: the learner "
            "would receive frame indices but could not read the frames. Apply "
            "wrappers.vector.IndexedFrameStack to the vector environment instead."
        )
