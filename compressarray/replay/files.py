"""Buffers in files: what a snapshot holds beside numbers and arrays, as such."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.errors import CorruptFrameError
from compressarray.format import container
from compressarray.replay import spaces
from compressarray.replay.fields import spaces_of
from compressarray.replay.outputs import NumpyOutput, make_output
from compressarray.snapshots import Snapshot, part_of

KIND = "ReplayBuffer"
_SPACES = ("observation_space", "action_space")


def tree_of(state: Snapshot) -> Snapshot:
    """What a buffer pickles, as a tree; whoever calls this has its locks until it is written."""
    arguments, observations = state["arguments"], state["observations"]
    device = state["output"].device
    return {
        **state,
        "arguments": {
            **arguments,
            **{name: spaces.tree_of(arguments[name]) for name in _SPACES},
            "fields": {name: spaces.tree_of(each) for name, each in arguments["fields"].items()},
        },
        "rng": _as_text(state["rng"].bit_generator.state),
        "output": None if device is None else str(device),
        "observations": {
            **observations,
            "entries": tuple(
                {**entry, "frames": _frames_tree(entry["frames"])}
                for entry in observations["entries"]
            ),
        },
    }


def state_from(tree: Any, device: Any, rng: np.random.Generator | None) -> Snapshot:
    """What `tree_of` was called with.

    Parameters
    ----------
    tree : dict
    device : str, torch.device, None or `AS_SAVED`
    rng : Generator, optional
        Instead of the saved one.

    Raises
    ------
    CorruptFrameError
        If it is the tree of no buffer.
    """
    arguments, observations = part_of(tree, "arguments"), part_of(tree, "observations")
    entries = part_of(observations, "entries")
    if not isinstance(entries, tuple) or not isinstance(arguments, dict):
        raise CorruptFrameError("a stored buffer has no entries, or no arguments")
    output: NumpyOutput = make_output(part_of(tree, "output") if device is AS_SAVED else device)
    return {
        **tree,
        "arguments": {
            **arguments,
            **{name: spaces.space_from(part_of(arguments, name)) for name in _SPACES},
            "fields": {
                name: spaces.space_from(each) for name, each in spaces_of(arguments).items()
            },
        },
        "rng": _generator_from(part_of(tree, "rng")) if rng is None else rng,
        "output": output,
        "observations": {
            **observations,
            "entries": tuple(
                {**entry, "frames": _frames_from(part_of(entry, "frames"))} for entry in entries
            ),
        },
    }


AS_SAVED: Any = object()  # what an argument is that nobody gave


def _frames_tree(frames: Any) -> Any:
    if isinstance(frames, DiffFrameArray):
        return {"array": frames._file_tree()}
    return frames


def _frames_from(tree: Any) -> Any:
    if isinstance(tree, dict) and set(tree) == {"array"}:
        return DiffFrameArray._from_tree(tree["array"])
    return tree


def _as_text(value: Any) -> Any:
    """A generator's state with its numbers as text: readers of JSON may round large ones."""
    if isinstance(value, dict):
        return {key: _as_text(each) for key, each in value.items()}
    return str(value) if isinstance(value, int) else value


def _from_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: each if key == "bit_generator" else _from_text(each) for key, each in value.items()
        }
    return int(value) if isinstance(value, str) else value


def bytes_of(rng: np.random.Generator) -> bytes:
    """The state of a generator."""
    return container.dumps("Generator", _as_text(rng.bit_generator.state))


def rng_from(state: npt.NDArray[np.uint8]) -> np.random.Generator:
    """The generator whose state `bytes_of` returned, or raise `CorruptFrameError`."""
    return _generator_from(container.loads(state.data, "Generator"))


def _generator_from(tree: Any) -> np.random.Generator:
    name = part_of(tree, "bit_generator")
    kind = getattr(np.random, str(name), None)
    if not isinstance(kind, type) or not issubclass(kind, np.random.BitGenerator):
        raise CorruptFrameError(f"a stored generator is {name!r}, none of numpy's")
    try:
        bits = kind()
        bits.state = _from_text(tree)
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise CorruptFrameError(f"a stored generator's state is none of {name}: {error}") from None
    return np.random.Generator(bits)
