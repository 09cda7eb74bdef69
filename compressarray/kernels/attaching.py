"""Arrays that kernels find by a description, instead of being called with each of them.

What a kernel is called with has to be unpacked at every call, 0.2 microseconds an array. So the
arrays that belong together are the fields of a named tuple, whose annotations say of what dtype and
how many axes each is; one table says where each of them lies, and kernels find them by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import from_dtype, types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import populate_array

MAX_NDIM = 3


class _Kind(NamedTuple):
    """What there is to know of an array beside where it lies, and how long it is."""

    dtype: npt.DTypeLike
    ndim: int


Int64Row = Annotated[npt.NDArray[np.int64], _Kind(np.int64, 1)]
Int64Table = Annotated[npt.NDArray[np.int64], _Kind(np.int64, 2)]
Int64Block = Annotated[npt.NDArray[np.int64], _Kind(np.int64, 3)]
Int32Row = Annotated[npt.NDArray[np.int32], _Kind(np.int32, 1)]
UInt64Row = Annotated[npt.NDArray[np.uint64], _Kind(np.uint64, 1)]
UInt64Table = Annotated[npt.NDArray[np.uint64], _Kind(np.uint64, 2)]
UInt32Row = Annotated[npt.NDArray[np.uint32], _Kind(np.uint32, 1)]
UInt32Table = Annotated[npt.NDArray[np.uint32], _Kind(np.uint32, 2)]
UInt16Row = Annotated[npt.NDArray[np.uint16], _Kind(np.uint16, 1)]
UInt16Block = Annotated[npt.NDArray[np.uint16], _Kind(np.uint16, 3)]
UInt8Row = Annotated[npt.NDArray[np.uint8], _Kind(np.uint8, 1)]
UInt8Table = Annotated[npt.NDArray[np.uint8], _Kind(np.uint8, 2)]
UInt8Block = Annotated[npt.NDArray[np.uint8], _Kind(np.uint8, 3)]
BoolRow = Annotated[npt.NDArray[np.bool_], _Kind(np.bool_, 1)]
Float32Row = Annotated[npt.NDArray[np.float32], _Kind(np.float32, 1)]
Float64Row = Annotated[npt.NDArray[np.float64], _Kind(np.float64, 1)]


def kind_of_row(dtype: np.dtype[np.void]) -> Any:
    """What stands in the annotation of an array of structures of one axis."""
    return _Kind(dtype, 1)


def describe(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Say where C-contiguous arrays lie, ``(arrays, 1 + MAX_NDIM)``: address, then lengths."""
    description = np.zeros((len(arrays), 1 + MAX_NDIM), np.int64)
    for row, array in zip(description, arrays, strict=True):
        row[0] = array.__array_interface__["data"][0]
        row[1 : 1 + array.ndim] = array.shape
    return description


class _AttachedType(types.Type):
    """What kernels know of a description: which arrays there are, by the name of a field.

    Its value is where the first array's row lies. An array is built where it is looked at, so what
    a kernel hands on to the kernels that it calls is one pointer; the arrays themselves, seven
    numbers each, took three quarters of the time to compile those.
    """

    def __init__(self, kind: Any) -> None:
        hints = get_type_hints(kind, include_extras=True)
        self.fields = tuple(kind._fields)
        kinds = [hints[name].__metadata__[0] for name in kind._fields]
        self.members = tuple(
            types.Array(from_dtype(np.dtype(each.dtype)), each.ndim, "C") for each in kinds
        )
        self.item_bytes = tuple(np.dtype(each.dtype).itemsize for each in kinds)
        super().__init__(name=f"Attached({kind.__module__}.{kind.__qualname__})")


@register_model(_AttachedType)
class _AttachedModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _AttachedType) -> None:
        super().__init__(manager, kind, ir.IntType(64).as_pointer())  # type: ignore[no-untyped-call]


@infer_getattr
class _Fields(AttributeTemplate):
    key = _AttachedType

    def generic_resolve(self, kind: _AttachedType, name: str) -> Any:  # type: ignore[override]
        return kind.members[kind.fields.index(name)] if name in kind.fields else None


@lower_getattr_generic(_AttachedType)  # type: ignore[no-untyped-call, untyped-decorator]
def _build_array(context: Any, builder: Any, kind: _AttachedType, rows: Any, name: str) -> Any:
    index = kind.fields.index(name)
    member = kind.members[index]

    def word(column: int) -> Any:
        place = context.get_constant(types.intp, index * (1 + MAX_NDIM) + column)
        loaded = builder.load(builder.gep(rows, [place]))
        # A description does not change while a kernel runs: one load of a word is enough.
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    array = context.make_array(member)(context, builder)
    item_bytes = context.get_constant(types.intp, kind.item_bytes[index])
    lengths = [word(1 + axis) for axis in range(member.ndim)]
    strides = [item_bytes]
    for length in lengths[:0:-1]:
        strides.insert(0, builder.mul(strides[0], length))
    populate_array(  # type: ignore[no-untyped-call]
        array,
        data=builder.inttoptr(word(0), array.data.type),
        shape=lengths,
        strides=strides,
        itemsize=item_bytes,
        meminfo=None,
    )
    return array._getvalue()


def attacher(kind: Any, first: int = 0) -> Any:
    """Make the function that finds the arrays of a named tuple by a description, in kernels.

    Parameters
    ----------
    kind : type of a NamedTuple
        All of its annotations are from above.
    first : int
        Its first array's row in the description.
    """
    answer = _AttachedType(kind)

    def attach(typingctx: Any, description: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            table = context.make_array(signature.args[0])(context, builder, args[0])
            place = context.get_constant(types.intp, first * (1 + MAX_NDIM))
            return builder.gep(table.data, [place])

        return answer(description), codegen

    return intrinsic(attach)
