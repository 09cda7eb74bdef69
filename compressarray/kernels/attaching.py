"""Arrays that kernels find by a description, instead of being called with each of them.

What a kernel is called with has to be unpacked at every call, 0.2 microseconds an array. So the
arrays that belong together are the fields of a named tuple, whose annotations say of what dtype and
how many axes each is; one table says where each of them lies, and kernels build the tuple from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt
from numba import from_dtype, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

MAX_NDIM = 3


class _Kind(NamedTuple):
    """What there is to know of an array beside where it lies, and how long it is."""

    dtype: type[np.generic]
    ndim: int


Int64Row = Annotated[npt.NDArray[np.int64], _Kind(np.int64, 1)]
Int64Table = Annotated[npt.NDArray[np.int64], _Kind(np.int64, 2)]
UInt64Row = Annotated[npt.NDArray[np.uint64], _Kind(np.uint64, 1)]
UInt32Row = Annotated[npt.NDArray[np.uint32], _Kind(np.uint32, 1)]
UInt16Row = Annotated[npt.NDArray[np.uint16], _Kind(np.uint16, 1)]
UInt16Block = Annotated[npt.NDArray[np.uint16], _Kind(np.uint16, 3)]
UInt8Row = Annotated[npt.NDArray[np.uint8], _Kind(np.uint8, 1)]
UInt8Table = Annotated[npt.NDArray[np.uint8], _Kind(np.uint8, 2)]
UInt8Block = Annotated[npt.NDArray[np.uint8], _Kind(np.uint8, 3)]


def describe(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Say where C-contiguous arrays lie, ``(arrays, 1 + MAX_NDIM)``: address, then lengths."""
    description = np.zeros((len(arrays), 1 + MAX_NDIM), np.int64)
    for row, array in zip(description, arrays, strict=True):
        row[0] = array.__array_interface__["data"][0]
        row[1 : 1 + array.ndim] = array.shape
    return description


def attacher(kind: Any, first: int = 0) -> Any:
    """Make the function that builds a named tuple of arrays from a description, in kernels.

    Parameters
    ----------
    kind : type of a NamedTuple
        All of its annotations are from above.
    first : int
        Its first array's row in the description.
    """
    hints = get_type_hints(kind, include_extras=True)
    members = [
        types.Array(from_dtype(np.dtype(each.dtype)), each.ndim, "C")
        for each in (hints[name].__metadata__[0] for name in kind._fields)
    ]
    answer = types.NamedTuple(members, kind)  # type: ignore[no-untyped-call]

    def attach(typingctx: Any, description: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            table = context.make_array(signature.args[0])(context, builder, args[0])

            def word(row: int, column: int) -> Any:
                place = context.get_constant(types.intp, row * (1 + MAX_NDIM) + column)
                return builder.load(builder.gep(table.data, [place]))

            arrays = []
            for row, member in enumerate(members, first):
                array = context.make_array(member)(context, builder)
                item_bytes = context.get_constant(types.intp, member.dtype.bitwidth // 8)
                lengths = [word(row, 1 + axis) for axis in range(member.ndim)]
                strides = [item_bytes]
                for length in lengths[:0:-1]:
                    strides.insert(0, builder.mul(strides[0], length))
                populate_array(  # type: ignore[no-untyped-call]
                    array,
                    data=builder.inttoptr(word(row, 0), array.data.type),
                    shape=lengths,
                    strides=strides,
                    itemsize=item_bytes,
                    meminfo=None,
                )
                arrays.append(array._getvalue())
            return context.make_tuple(builder, answer, arrays)

        return answer(description), codegen

    return intrinsic(attach)
