"""What other libraries make of the array: one read each, and what numpy's would give."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from compressarray import DiffFrameArray
from tests.naive import assert_same


def pair(dtype: Any = np.uint8) -> tuple[DiffFrameArray, np.ndarray[Any, Any]]:
    dense = np.random.default_rng(0).integers(0, 99, (50, 8, 8)).astype(dtype)
    array = DiffFrameArray(dense.shape, dtype)
    array[...] = dense
    return array, dense


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The keys that are read."""
    keys: list[Any] = []
    read = DiffFrameArray.__getitem__

    def counted(self: DiffFrameArray, key: Any) -> Any:
        keys.append(key)
        return read(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(DiffFrameArray, "__getitem__", counted)
        yield keys


def test_every_public_name_of_an_ndarray() -> None:
    array, _ = pair()
    refused = {"T", "mT", "ctypes", "data", "flags", "strides"}
    for name in dir(np.empty(1)):
        if name.startswith("_") or not hasattr(
            np.empty((1, 1)), name
        ):  # some are gone since numpy 2
            continue
        if name in refused:
            with pytest.raises(AttributeError, match=r"np\.asarray\(a\)"):
                getattr(array, name)
        else:
            assert getattr(array, name) is not None or name == "base", name
    for name in ("base", "device", "flat", "real", "imag", "nbytes", "itemsize", "size"):
        assert hasattr(array, name)


@pytest.mark.parametrize("name", ["shape", "dtype"])
def test_what_cannot_be_set_says_what_can_be_done(name: str) -> None:
    array, _ = pair()
    with pytest.raises(AttributeError, match=r"use a\.(reshape|astype)"):
        setattr(array, name, getattr(array, name))


def test_an_array_takes_no_attributes_as_an_ndarray_takes_none() -> None:
    array, _ = pair()
    with pytest.raises(AttributeError):
        array.note = 3  # type: ignore[attr-defined]


# --------------------------------------------------------------------------- torch


def test_torch_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    array, dense = pair()
    for make in (torch.as_tensor, torch.tensor, torch.from_dlpack, torch.asarray):
        with reads(monkeypatch) as keys:
            tensor = make(array)
        assert len(keys) == 1
        assert_same(tensor.numpy(), dense)
        tensor[0] = 0
        assert_same(np.asarray(array), dense)


def test_torchs_data_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    array, dense = pair()
    with reads(monkeypatch) as keys:
        batches = list(torch.utils.data.DataLoader(array, batch_size=16))
    assert len(keys) == 50
    assert_same(torch.cat(batches).numpy(), dense)


# --------------------------------------------------------------------------- dlpack, buffers


def test_dlpack() -> None:
    array, dense = pair(np.float32)
    assert_same(np.from_dlpack(array).copy(), dense)
    assert array.__dlpack_device__() == dense.__dlpack_device__()
    exported = np.from_dlpack(array, copy=True)
    if exported.flags.writeable:  # older numpys take it read-only
        exported[...] = 0
    assert_same(np.asarray(array), dense)
    with pytest.raises(BufferError, match="copy"):
        np.from_dlpack(array, copy=False)
    with pytest.raises(BufferError, match="copy"):
        array.__dlpack__(copy=False)


def test_buffers() -> None:
    array, dense = pair()
    with pytest.raises((TypeError, BufferError)):
        memoryview(array)  # type: ignore[arg-type]
    with pytest.raises(BufferError, match=r"np\.asarray"):
        array.__buffer__(0)
    assert bytes(array) == array.tobytes() == dense.tobytes()
    assert array.tobytes("F") == dense.tobytes("F")


def test_array_api() -> None:
    array, _ = pair()
    assert array.__array_namespace__() is np
    assert array.to_device("cpu") is array
    with pytest.raises(ValueError, match="cuda"):
        array.to_device("cuda")


# --------------------------------------------------------------------------- matplotlib


def test_matplotlib() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    array, dense = pair()
    figure, axes = plt.subplots()
    assert_same(np.ma.getdata(axes.imshow(array[0]).get_array()).copy(), dense[0].copy())
    table = DiffFrameArray((8, 6), frame_ndim=1)
    assert len(axes.hist(table)[0]) == len(axes.hist(np.asarray(table))[0]) == 6
    lines = axes.plot(table)
    assert len(lines) == 6
    plt.close(figure)


# --------------------------------------------------------------------------- Python


def test_scalars() -> None:
    array, dense = pair()
    assert array.item(7) == dense.item(7)
    assert array.item(-1) == dense.item(-1)
    assert array.item(3, 2, 1) == array.item((3, 2, 1)) == dense.item(3, 2, 1)
    assert type(array.item(7)) is int
    for wrong, error in (((), ValueError), ((1, 2), ValueError), ((99999,), IndexError)):
        with pytest.raises(error):
            array.item(*wrong)
    for convert in (int, float, complex):
        with pytest.raises(TypeError):
            convert(array)


def test_files_and_pickles(tmp_path: Any) -> None:
    array, dense = pair()
    array.tofile(tmp_path / "frames")
    assert (tmp_path / "frames").read_bytes() == dense.tobytes()
    with (tmp_path / "open").open("wb") as file:
        array.tofile(file)
    assert (tmp_path / "open").read_bytes() == dense.tobytes()
    array.dump(tmp_path / "pickle")
    assert np.array_equal(pickle.loads((tmp_path / "pickle").read_bytes()), array)
    room = io.BytesIO()
    array.dump(room)
    assert np.array_equal(pickle.loads(room.getvalue()), array)
    assert np.array_equal(pickle.loads(array.dumps()), array)


def test_small_things_as_numpy_has_them() -> None:
    from collections import namedtuple

    array, dense = pair()
    two = namedtuple("two", "x y")
    assert np.size(array, 0) == 50
    assert np.stack(two(array, array)).shape == (2, *dense.shape)
    assert array.copy(order="C").shape == dense.shape
    assert array.astype("u1", copy=False) is array
    assert_same(array.astype(np.float32, copy=False), dense.astype(np.float32))
    assert_same(array.astype("f4", order="F").copy(order="C"), dense.astype("f4"))
    with pytest.raises(TypeError, match="safe"):
        array.astype(np.int8, casting="safe")
    assert np.atleast_1d(array) is array
    assert np.real(array) is array.real is array
    assert not array.imag.any()
    assert np.zeros_like(array).flags.c_contiguous
    assert_same(np.full_like(array, array[0]), np.full_like(dense, dense[0]))
    assert_same(np.copy(array), dense)
    assert DiffFrameArray[Any].__origin__ is DiffFrameArray


def test_a_mask_among_the_arguments_is_no_recursion() -> None:
    values = np.arange(12.0).reshape(4, 3)
    mask = DiffFrameArray((4, 3), bool, frame_ndim=1)
    mask[...] = values > 5
    plain = np.asarray(mask)
    room = np.zeros((4, 3))
    assert np.array_equal(
        np.add(values, 1, where=mask, out=room.copy()), np.add(values, 1, where=plain, out=room)
    )
    assert values.sum(where=mask) == values.sum(where=plain)
    assert np.mean(values, where=mask) == values.mean(where=plain)
    assert values.max(where=mask, initial=0) == 11


def test_strings_of_no_length() -> None:
    array = DiffFrameArray((3,), [("a", "S0"), ("b", "u1")], frame_ndim=0)
    assert array["a"].dtype == np.zeros(3, array.dtype)["a"].dtype == "S0"
    assert array["a"].shape == (3,)
    for dtype in ("S3", "U2"):
        unwritten = DiffFrameArray((1, 2), dtype, frame_ndim=1)
        assert_same(np.asarray(unwritten), np.zeros((1, 2), dtype))


def test_operands_with_a_say_of_their_own() -> None:
    class Other:
        __array_priority__ = 1

        def __add__(self, other: Any) -> Any:
            return "forward", type(other)

        def __radd__(self, other: Any) -> Any:
            return "reflected", type(other)

        __iadd__ = __add__

    class NoUfunc(Other):
        __array_ufunc__ = None

    array, _ = pair()
    for other in (Other(), NoUfunc()):
        assert array + other == ("reflected", DiffFrameArray)
        assert other + array == ("forward", DiffFrameArray)
    masked = np.ma.array(np.ones((8, 8), np.uint8), mask=np.eye(8))
    assert type(array + masked) is np.ma.MaskedArray
    assert np.ma.allequal(array + masked, np.asarray(array) + masked)


@pytest.mark.parametrize("n", [61, 62, 63, 64, 65])
def test_keys_of_as_many_parts_as_numpy_takes(n: int) -> None:
    array, dense = DiffFrameArray((1,), frame_ndim=0), np.zeros(1, np.uint8)
    for part in (True, np.array(True), None):
        for last in (part, [0], 0, slice(None)):
            key = (part,) * (n - 1) + (last,)
            try:
                expected = dense[key].shape
            except IndexError:
                with pytest.raises(IndexError):
                    array[key]
            else:
                assert array[key].shape == expected
