"""Views of leading axes: what they show, what they write, and what becomes of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressarray import DiffFrameArray
from compressarray.array.leads import Leads
from tests.effort import examples
from tests.strategies import assert_holds, outcome

View = Callable[[Any], Any]


def pair(shape: tuple[int, ...], frame_ndim: int = 2, seed: int = 0, **options: Any) -> Any:
    dense = np.random.default_rng(seed).integers(0, 99, shape, np.uint8)
    array = DiffFrameArray(shape, frame_ndim=frame_ndim, **options)
    array[...] = dense
    return array, dense


VIEWS: dict[str, View] = {
    "swapaxes": lambda a: a.swapaxes(0, 1),
    "swapaxes, function": lambda a: np.swapaxes(a, 1, 2),
    "transpose": lambda a: a.transpose(2, 0, 1, 3, 4),
    "transpose, one tuple": lambda a: a.transpose((1, 2, 0, -2, -1)),
    "transpose, function": lambda a: np.transpose(a, (0, 2, 1, 3, 4)),
    "transpose, axes=": lambda a: np.transpose(a, axes=(0, 2, 1, 3, 4)),
    "moveaxis": lambda a: np.moveaxis(a, 0, 2),
    "rollaxis": lambda a: np.rollaxis(a, 2),
    "expand_dims": lambda a: np.expand_dims(a, (0, 2)),
    "squeeze": lambda a: a.reshape(1, 4, 1, 6, 5, 6).squeeze(),
    "squeeze, axis": lambda a: np.squeeze(a.reshape(1, 4, 1, 6, 5, 6), axis=2),
    "reshape": lambda a: a.reshape(-1, 5, 6),
    "reshape, copy=False": lambda a: a.reshape((2, 12, 5, 6), copy=False),
    "reshape of turned axes": lambda a: a.swapaxes(1, 2).swapaxes(2, 1).reshape(-1, 5, 6),
    "reshape that splits turned axes": lambda a: a.swapaxes(0, 1).reshape(3, 1, 2, 2, 2, 5, 6),
    "view": lambda a: a.view(),
    "view, own dtype": lambda a: a.view(np.uint8),
    "turned twice": lambda a: a.transpose(1, 2, 0, 3, 4).transpose(1, 2, 0, 3, 4),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_a_view_shows_and_writes_through(name: str, codec: str) -> None:
    array, dense = pair((2, 3, 4, 5, 6), codec=codec)
    view, plain = VIEWS[name](array), VIEWS[name](dense)
    assert type(view) is DiffFrameArray
    assert view.base is array
    assert_holds(view, plain.copy())
    assert np.shares_memory(view, array)
    rng = np.random.default_rng(1)
    for _ in range(4):
        i = tuple(int(rng.integers(n)) for n in view.shape[: int(rng.integers(1, view.ndim))])
        view[i] = plain[i] = int(rng.integers(99))
        view[i] += 1
        plain[i] += 1
    view[[0, -1], ...] = plain[[0, -1], ...] = 7
    assert_holds(view, plain.copy())
    assert_holds(array, dense)
    array[1] = dense[1] = 3
    assert_holds(view, plain.copy())
    view *= 2
    plain *= 2
    assert_holds(array, dense)
    assert view.sum() == plain.sum()
    assert np.array_equal(view.max(axis=0), plain.max(axis=0))


MOVED: dict[str, View] = {
    "T": lambda a: a.T,
    "mT": lambda a: a.mT,
    "transpose": lambda a: a.transpose(),
    "transpose of frames": lambda a: a.transpose(0, 1, 3, 2),
    "swapaxes": lambda a: a.swapaxes(0, -1),
    "swapaxes of frames": lambda a: a.swapaxes(-1, -2),
    "moveaxis": lambda a: np.moveaxis(a, -1, 1),
    "expand_dims": lambda a: np.expand_dims(a, -1),
    "reshape": lambda a: a.reshape(-1),
    "reshape of frames": lambda a: a.reshape(3, 4, 36),
}


@pytest.mark.parametrize("name", MOVED)
def test_frames_stay_whole(name: str) -> None:
    """Also where the lengths would not tell: these frames are square."""
    array, dense = pair((3, 4, 6, 6))
    with pytest.raises(ValueError, match=r"np\.asarray|one"):
        MOVED[name](array)
    assert_holds(array, dense)


def test_frames_of_one_row_keep_it() -> None:
    array, dense = pair((1, 3, 1, 6))
    with pytest.raises(ValueError, match=r"np\.asarray"):
        array.squeeze()
    assert_holds(array.squeeze(0), dense.squeeze(0))
    with pytest.raises(ValueError, match=r"np\.asarray"):
        DiffFrameArray((1, 6, 6)).squeeze()  # no axis would be left for time


def test_who_asks_whether_it_can_be_turned_is_answered() -> None:
    array, _ = pair((3, 4, 6, 6))
    assert not hasattr(array, "T")
    scalars, dense = pair((3, 4), 0)
    assert_holds(scalars.T, dense.T.copy())
    assert_holds(scalars.mT, dense.T.copy())
    assert_holds(scalars.T.ravel(), dense.T.ravel())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a.swapaxes(0, 9),
        lambda a: a.transpose(0, 0, 2, 3),
        lambda a: a.transpose(0, 1),
        lambda a: a.squeeze(0),
        lambda a: a.reshape(5, 6, 6),
        lambda a: a.reshape(-1, -1, 6, 6),
        lambda a: a.swapaxes(0, 1).reshape(-1, 6, 6, copy=False),
        lambda a: a.reshape(12, 6, 6, order="F"),
    ],
)
def test_what_numpy_refuses(wrong: View) -> None:
    array, dense = pair((3, 4, 6, 6))
    _, error = outcome(lambda: wrong(array))
    assert isinstance(error, (ValueError, np.exceptions.AxisError))
    assert_holds(array, dense)


def test_where_numpy_copies_so_do_we() -> None:
    """What `swap_and_flatten` of a rollout does; the copy is compressed, too."""
    array, dense = pair((8, 3, 2, 12, 10))
    flat, plain = (
        array.swapaxes(0, 1).reshape(24, 2, 12, 10),
        dense.swapaxes(0, 1).reshape(24, 2, 12, 10),
    )
    assert_holds(flat, plain)
    assert flat.base is None
    assert not np.shares_memory(flat, array)
    flat[3] = plain[3] = 1
    assert_holds(flat, plain)
    assert_holds(array, dense)
    array[...] = 9
    assert_holds(flat, plain)
    again = flat.reshape(4, 6, 2, 12, 10).swapaxes(0, 1).reshape(-1, 12, 10)
    assert_holds(again, plain.reshape(4, 6, 2, 12, 10).swapaxes(0, 1).reshape(-1, 12, 10))
    kept = array.reshape(-1, 12, 10, copy=True)
    kept[...] = 0
    assert array.min() == 9


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda a: a.copy(), lambda a: pickle.loads(pickle.dumps(a))]
)
def test_copies_of_turned_views_are_rings_of_their_own(how: View) -> None:
    array, dense = pair((8, 3, 12, 10), codec="delta")
    twin = how(array.swapaxes(0, 1))
    assert_holds(twin, dense.swapaxes(0, 1).copy())
    twin[...] = 0
    assert_holds(array, dense)
    index = twin.append(dense[:2, :1].repeat(8, axis=1))
    assert twin.gather(index).shape == (2, 8, 12, 10)


def test_a_turned_view_gathers_from_its_base() -> None:
    array, dense = pair((8, 3, 12, 10))
    index = array.append(dense)
    view = array.swapaxes(0, 1)
    assert np.array_equal(view.gather(index[2, 1]), dense[2, 1])
    with pytest.raises(TypeError, match="view"):
        view.append(dense[0])
    view[1, 2] = 0
    assert isinstance(outcome(lambda: array.gather(index[2, 1]))[1], IndexError)
    assert np.array_equal(array.gather(index[2, 2]), dense[2, 2])


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[Any]]:
    lead = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    frame = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    return lead, frame, draw(st.lists(st.integers(0, 10**6), max_size=5))


@settings(max_examples=examples(150))
@given(chains())
def test_views_of_views(chain: Any) -> None:
    """Any sequence of turning and reshaping, against numpy's own."""
    lead, frame, choices = chain
    array, dense = pair(lead + frame, len(frame))
    if not array.size:
        return
    view, plain = array, dense
    for choice in choices:
        rng = np.random.default_rng(choice)
        n_lead = view.ndim - len(frame)
        shape = view.shape[:n_lead]
        if choice % 2:
            axes = (*rng.permutation(n_lead).tolist(), *range(n_lead, view.ndim))
            view, plain = view.transpose(axes), plain.transpose(axes)
            continue
        size = prod(shape)
        first = int(rng.choice([d for d in range(1, size + 1) if size % d == 0]))
        new = [(size,), (first, size // first), (1, *shape), (first, 1, -1)][int(rng.integers(4))]
        view, plain = view.reshape(*new, *frame), plain.reshape(*new, *frame)
    assert_holds(view, plain.copy())
    place = (0,) * (view.ndim - len(frame))
    view[place] = plain[place] = 100  # reaches the array just where numpy's reaches
    view[(slice(None, None, 2),)] = plain[(slice(None, None, 2),)] = 101
    assert_holds(view, plain.copy())
    assert_holds(array, dense)


def test_leads_of_no_cells() -> None:
    assert Leads.of((0, 3)).to_base(np.zeros(0, np.int64)).size == 0
    array = DiffFrameArray((0, 3, 2, 2))
    assert array.swapaxes(0, 1).reshape(-1, 2, 2).shape == (0, 2, 2)
