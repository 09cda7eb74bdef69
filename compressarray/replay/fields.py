"""What a user keeps beside each transition, such as the log-probability of its action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.replay.layout import as_array
from compressarray.snapshots import Snapshot, array_of, part_of

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

_NOTHING: Mapping[str, AnyArray] = {}


class Fields:
    """Named values of fixed shape and dtype, one of each for every cell; stored as they are.

    Parameters
    ----------
    spaces : mapping of str to space, or None
        Looked at are their shapes and dtypes.
    n_cells : int
    """

    def __init__(self, spaces: Any, n_cells: int) -> None:
        if spaces is not None and not isinstance(spaces, Mapping):
            raise TypeError(
                f"fields={spaces!r} must be a mapping of names to spaces, such as "
                "{'log_prob': Box(-inf, 0, (), np.float32)}"
            )
        self.values: dict[str, AnyArray] = {}
        for name, space in (spaces or {}).items():
            shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
            if not isinstance(name, str) or shape is None or dtype is None:
                raise TypeError(
                    f"fields[{name!r}]={space!r} must be a space with a shape and a dtype, under a "
                    "name that is text"
                )
            self.values[name] = np.zeros((n_cells, *shape), dtype)

    def checked(self, given: Any, n: int) -> Mapping[str, AnyArray]:
        """Return a value of each field for each of ``n`` rows, copies.

        Raises
        ------
        TypeError, ValueError
            If a field lacks, is none of these, or has another shape or kind of dtype.
        """
        if given is None and not self.values:
            return _NOTHING
        if given is None or not isinstance(given, Mapping):
            raise TypeError(
                f"fields={given!r} must be a mapping with values for {', '.join(self.values)}"
            )
        if set(given) != set(self.values):
            raise ValueError(
                f"fields has {', '.join(map(repr, given)) or 'nothing'}; this buffer was built "
                f"with {', '.join(map(repr, self.values)) or 'none'}, and each step needs all of "
                "them"
            )
        return {name: self._checked_one(name, given[name], n) for name in self.values}

    def _checked_one(self, name: str, given: Any, n: int) -> AnyArray:
        held = self.values[name]
        if hasattr(given, "detach"):
            given = given.detach().cpu()
        values = as_array(f"fields[{name!r}]", given)
        expected = (n, *held.shape[1:])
        if values.shape != expected:
            raise ValueError(f"fields[{name!r}] has shape {values.shape}; {n} rows need {expected}")
        if not np.can_cast(values.dtype, held.dtype, "same_kind"):
            raise TypeError(
                f"fields[{name!r}] has dtype {values.dtype}, and its space says {held.dtype}"
            )
        return values.astype(held.dtype)

    def write(self, cells: Int64s, given: Mapping[str, AnyArray], rows: Any) -> None:
        """Have what ``given`` has in some rows, in some cells."""
        for name, values in given.items():
            self.values[name][cells] = values[rows]

    def read(self, cells: Int64s) -> dict[str, AnyArray]:
        """Return what some cells hold, copies of the cells' shape and the field's."""
        return {name: values[cells] for name, values in self.values.items()}

    def snapshot(self) -> Snapshot:
        """Show everything, as views."""
        return dict(self.values)

    def restore(self, snapshot: Any) -> None:
        """Become what a snapshot was taken of, or raise `CorruptFrameError`."""
        if not isinstance(snapshot, dict) or set(snapshot) != set(self.values):
            raise CorruptFrameError(f"stored fields are not {', '.join(self.values) or 'none'}")
        for name, values in self.values.items():
            self.values[name] = array_of(snapshot, name, values.dtype, values.shape)

    @property
    def row_nbytes(self) -> int:
        """Bytes of all fields of one transition."""
        return sum(values[:1].nbytes for values in self.values.values())

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(values.nbytes for values in self.values.values())


def spaces_of(arguments: Snapshot) -> dict[str, Any]:
    """The spaces of the fields that the arguments of a stored buffer name."""
    spaces = part_of(arguments, "fields")
    if not isinstance(spaces, dict):
        raise CorruptFrameError(f"stored fields are a {type(spaces).__name__}")
    return spaces
