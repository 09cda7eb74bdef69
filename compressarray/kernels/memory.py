"""Raw memory inside kernels: unaligned words, byte masks, copies.

Kernels take addresses (``int64``) instead of arrays where frames of any alignment and
writability come in: one compiled version then serves every caller. Nothing here checks bounds;
callers validate before, or only read what this process's own encoder wrote.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from compressarray.kernels.compiling import inlined, kernel


def _has_bmi2() -> bool:
    """Whether the processor that numba compiles for has BMI2; users may name a plainer one."""
    if config.CPU_NAME is None and config.CPU_FEATURES is None:  # type: ignore[attr-defined]
        return bool(llvmlite.binding.get_host_cpu_features().get("bmi2", False))
    return "+bmi2" in (config.CPU_FEATURES or "").split(",")  # type: ignore[attr-defined]


HAS_BMI2 = _has_bmi2()

STACK_WORDS = 24
_BYTE_ONES = np.uint64(0x0101010101010101)
_LOW_7 = np.uint64(0x7F7F7F7F7F7F7F7F)
_HIGH_1 = np.uint64(0x8080808080808080)
_GATHER_BITS = np.uint64(0x0102040810204080)


def _loader(bits: int, ty: Any) -> Any:
    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], word.as_pointer())
            return builder.load(pointer, align=1)

        return ty(types.int64), codegen

    return load


def _storer(bits: int, ty: Any) -> Any:
    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], word.as_pointer())
            builder.store(args[1], pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, ty), codegen

    return store


load64 = _loader(64, types.uint64)
load32 = _loader(32, types.uint32)
load16 = _loader(16, types.uint16)
load8 = _loader(8, types.uint8)
store64 = _storer(64, types.uint64)
store32 = _storer(32, types.uint32)
store16 = _storer(16, types.uint16)
store8 = _storer(8, types.uint8)


def _mover(name: str) -> Any:
    @intrinsic
    def move(typingctx: Any, target: Any, source: Any, n_bytes: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte_pointer = ir.IntType(8).as_pointer()
            pointers = [builder.inttoptr(address, byte_pointer) for address in args[:2]]
            function = builder.module.declare_intrinsic(
                name, [byte_pointer, byte_pointer, ir.IntType(64)]
            )
            builder.call(function, [*pointers, args[2], ir.Constant(ir.IntType(1), 0)])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return move


def _base(typingctx: Any, array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


# (array): where its memory begins: signed, as all that is added to it is. Numba's own
# ``array.ctypes.data`` is unsigned, and unsigned plus signed is a float.
base_of: Any = intrinsic(_base)


def _pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


_pointer_to: Any = intrinsic(_pointer)


@inlined
def array_at(address: Any, shape: Any, dtype: Any) -> Any:
    """An array over memory that somebody else holds."""
    return carray(_pointer_to(address), shape, dtype)


# (target, source, n_bytes), addresses; the first for ranges that do not overlap.
copy_bytes = _mover("llvm.memcpy")
move_bytes = _mover("llvm.memmove")

_STREAMED_BYTES = 16  # at once, the widest that every 64-bit processor has


def _streamer(n_pieces: int) -> Any:
    @intrinsic
    def stream(typingctx: Any, target: Any, source: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = ir.VectorType(ir.IntType(64), 2).as_pointer()
            into, of = (builder.inttoptr(address, pointer) for address in args)
            one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            for i in range(n_pieces):
                at = [ir.Constant(ir.IntType(32), i)]
                value = builder.load(builder.gep(of, at), align=1)
                store = builder.store(value, builder.gep(into, at), align=_STREAMED_BYTES)
                store.set_metadata("nontemporal", one)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return stream


_stream_16, _stream_64 = _streamer(1), _streamer(4)


@inlined
def stream_bytes(target: Any, source: Any, n_bytes: Any) -> None:
    """Copy what nobody reads soon, past the caches; `order_streams` has to follow, once."""
    head = min(-target & (_STREAMED_BYTES - 1), n_bytes)
    copy_bytes(target, source, head)
    done = head
    # 16 at a time, 256 stacks of MsPacman and Pong took 7 to 8 % longer in all
    while done + 64 <= n_bytes:
        _stream_64(target + done, source + done)
        done += 64
    while done + 16 <= n_bytes:
        _stream_16(target + done, source + done)
        done += 16
    copy_bytes(target + done, source + done, n_bytes - done)


def _fence(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


# Streamed bytes are in order with nothing: this lets all that follows come after them.
order_streams: Any = intrinsic(_fence)


def _counter(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        counter = builder.inttoptr(args[0], word.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(word, 1), "seq_cst")

    return types.int64(types.int64), codegen


# (address): add one to the number there; what it was before, which no other thread is told.
count_on: Any = intrinsic(_counter)


def _prefetch(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        byte_pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
        name = "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        read, keep, data = (ir.Constant(word, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], byte_pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _stack_words(typingctx: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        alloca: Any = cgutils.alloca_once
        words = alloca(builder, ir.ArrayType(ir.IntType(64), STACK_WORDS))
        return builder.ptrtoint(words, ir.IntType(64))

    return types.int64(), codegen


# (address): begin to load its cache line; the address need not be a valid one.
prefetch: Any = intrinsic(_prefetch)
# (): the address of `STACK_WORDS` words of any content on the stack, good until the kernel returns.
# Numba may free an array while only its address is still in use.
stack_words: Any = intrinsic(_stack_words)


def _changed_bytes(typingctx: Any, first: Any, second: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        block = ir.VectorType(ir.IntType(8), 64)
        pointers = [builder.inttoptr(address, block.as_pointer()) for address in args]
        loaded = [builder.load(pointer, align=1) for pointer in pointers]
        return builder.bitcast(builder.icmp_unsigned("!=", *loaded), ir.IntType(64))

    return types.uint64(types.int64, types.int64), codegen


def _count_bits(typingctx: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


# (address, address): a 64-bit mask with bit ``i`` set where the bytes ``i`` of two blocks of 64
# differ. A few instructions on any machine with vectors; a loop of words would take fifty.
changed_bytes: Any = intrinsic(_changed_bytes)
# (word): how many bits are set.
count_bits: Any = intrinsic(_count_bits)


def _bmi2(name: str) -> Any:
    @intrinsic
    def bit_move(typingctx: Any, value: Any, mask: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(64)
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(word, [word, word]), name
            )
            return builder.call(function, args)

        return types.uint64(types.uint64, types.uint64), codegen

    return bit_move


@kernel
def portable_spread_bytes(value: Any, mask: Any) -> Any:
    """Deposit the low bytes of ``value`` under the whole-byte ``mask`` (``pdep``)."""
    result = np.uint64(0)
    for i in range(8):
        lane = np.uint64(0xFF) << np.uint64(8 * i)
        if mask & lane:
            result |= (value & np.uint64(0xFF)) << np.uint64(8 * i)
            value >>= np.uint64(8)
    return result


@kernel
def portable_squeeze_bytes(value: Any, mask: Any) -> Any:
    """Gather the bytes of ``value`` under the whole-byte ``mask`` to the low end (``pext``)."""
    result = np.uint64(0)
    n = 0
    for i in range(8):
        if mask & (np.uint64(0xFF) << np.uint64(8 * i)):
            byte = (value >> np.uint64(8 * i)) & np.uint64(0xFF)
            result |= byte << np.uint64(8 * n)
            n += 1
    return result


# One instruction on x86; the loops serve every other machine, and are tested on all.
spread_bytes: Any = _bmi2("llvm.x86.bmi.pdep.64") if HAS_BMI2 else portable_spread_bytes
squeeze_bytes: Any = _bmi2("llvm.x86.bmi.pext.64") if HAS_BMI2 else portable_squeeze_bytes


@inlined
def nonzero_bytes(word: Any) -> Any:
    """An 8-bit mask with bit ``i`` set where byte ``i`` of ``word`` is not zero."""
    high = (((word & _LOW_7) + _LOW_7) | word) & _HIGH_1
    return ((high >> np.uint64(7)) * _GATHER_BITS) >> np.uint64(56)


@inlined
def portable_widen_mask(mask: Any) -> Any:
    """The inverse of `nonzero_bytes`: 0xFF in every byte whose bit is set."""
    bits = ((mask & np.uint64(0xFF)) * _BYTE_ONES) & np.uint64(0x8040201008040201)
    high = (((bits & _LOW_7) + _LOW_7) | bits) & _HIGH_1
    return (high >> np.uint64(7)) * np.uint64(0xFF)


@inlined
def _bmi2_widen_mask(mask: Any) -> Any:
    # a bit at a time, here, not a byte
    return spread_bytes(mask, _BYTE_ONES) * np.uint64(0xFF)


widen_mask: Any = _bmi2_widen_mask if HAS_BMI2 else portable_widen_mask


@inlined
def repeat_byte(byte: Any) -> Any:
    """A word that holds ``byte`` eight times."""
    return (byte & np.uint64(0xFF)) * _BYTE_ONES


@inlined
def add_bytes(first: Any, second: Any) -> Any:
    """The sums of the bytes of two words, modulo 256."""
    return ((first & _LOW_7) + (second & _LOW_7)) ^ ((first ^ second) & _HIGH_1)


@inlined
def subtract_bytes(first: Any, second: Any) -> Any:
    """What is left of the bytes of a word without those of another, modulo 256."""
    return ((first | _HIGH_1) - (second & _LOW_7)) ^ ((first ^ ~second) & _HIGH_1)


@inlined
def sum_bytes(word: Any, distance: Any) -> Any:
    """To each byte those added that lie ``distance`` (1 to 8) bytes before it, twice that, ..."""
    shift = distance << 3
    while shift < 64:
        word = add_bytes(word, word << np.uint64(shift))
        shift <<= 1
    return word


@inlined
def load_tail(address: Any, n_bytes: Any) -> Any:
    """The ``n_bytes`` (under 8) at ``address`` as the low end of a word, reading no further."""
    word = np.uint64(0)
    for i in range(n_bytes):
        word |= np.uint64(load8(address + i)) << np.uint64(8 * i)
    return word


@inlined
def store_tail(address: Any, word: Any, n_bytes: Any) -> None:
    """Store the low ``n_bytes`` (under 8) of ``word``, writing no further."""
    for i in range(n_bytes):
        store8(address + i, np.uint8((word >> np.uint64(8 * i)) & np.uint64(0xFF)))


@kernel
def same_bytes(first: Any, second: Any, n_bytes: Any) -> Any:
    """Whether the ``n_bytes`` at two addresses are equal."""
    whole = n_bytes >> 3
    block = whole & ~7
    for i in range(0, block, 8):
        # eight words at a time, without a branch between them: LLVM makes vectors of these
        change = np.uint64(0)
        for j in range(8):
            offset = (i + j) << 3
            change |= load64(first + offset) ^ load64(second + offset)
        if change:
            return False
    for i in range(block, whole):
        if load64(first + (i << 3)) != load64(second + (i << 3)):
            return False
    tail = n_bytes & 7
    offset = whole << 3
    return tail == 0 or load_tail(first + offset, tail) == load_tail(second + offset, tail)


@inlined
def _count_changed_words_of_block(first: Any, second: Any) -> Any:
    masks = changed_bytes(first, second)
    # the lowest bit of each eight: whether there is one among them
    for shift in (4, 2, 1):
        masks |= masks >> np.uint64(shift)
    return count_bits(masks & _BYTE_ONES)


@kernel
def guess_changed_words(first: Any, second: Any, n_bytes: Any) -> Any:
    """About how many of the words at two addresses differ, from one block of 64 bytes in four."""
    n = np.int64(0)
    for i in range(0, n_bytes - 63, 256):
        n += _count_changed_words_of_block(first + i, second + i)
    return 4 * n


@kernel
def count_changed_words(first: Any, second: Any, n_bytes: Any) -> Any:
    """How many of the whole words at two addresses differ."""
    n = np.int64(0)
    blocked = n_bytes & ~63
    for i in range(0, blocked, 64):
        n += _count_changed_words_of_block(first + i, second + i)
    for i in range(blocked, n_bytes - 7, 8):
        n += load64(first + i) != load64(second + i)
    return n
