"""How transitions come into a buffer."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compressarray.errors import FrameEvictedError, StaleStreamError
from compressarray.replay.checks import (
    checked_bools,
    checked_info,
    checked_lanes,
    checked_rewards,
)
from compressarray.replay.layout import as_array
from compressarray.replay.parts import BufferParts
from compressarray.replay.plain_steps import plain_steps_of
from compressarray.replay.resets import NOT_RESET, Told
from compressarray.replay.steps import AddStep, ClearStep, CutStep, Rows
from compressarray.replay.transitions import first_not_finite

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

B = TypeVar("B")


class Adding(BufferParts):
    """The methods of a buffer that write to it."""

    def add(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        next_obs: Any,
        info: Mapping[str, Any] | None = None,
        *,
        was_reset: Any = None,
        fields: Mapping[str, Any] | None = None,
        lanes: npt.ArrayLike | None = None,
    ) -> None:
        """Add what one step of all environments gave; copied.

        Parameters
        ----------
        obs : (n_envs, *observation shape)
            What the policy saw; of a Dict space, a dict of such.
        action : (n_envs, *action shape)
        reward : (n_envs,) of numbers
            Kept as float32.
        terminated, truncated : (n_envs,) bool
        next_obs : as `obs`
            What the step returned. Where it is a reset's (SAME_STEP), the episode's last
            observation is taken from `info`.
        info : mapping, optional
            The step's. Looked at are ``final_obs`` and ``_final_obs``, and what ALE's vector
            environment counts: ``frame_number`` and ``episode_frame_number``.
        was_reset : (n_envs,) bool, optional
            Lanes that the environment has reset in this step; under "disabled", those that you have
            reset before it. Needed where not every end is followed by a reset, as with ALE's
            ``life_loss_info``, and nothing else tells: see Notes.
        fields : mapping of str to (n_envs, *field shape), optional
            Of a buffer that was built with `fields`, all of them.
        lanes : sequence of int, or (n_envs,) bool, optional
            The lanes that have stepped; all other arguments then have a row for each of these.
            ALE's counters are not looked at.

        Raises
        ------
        TypeError, ValueError
            For wrong shapes and dtypes, NaN, actions outside their space, or no final observation;
            for `obs` and `next_obs` in one memory, and an `info` of another kind or of another
            autoreset mode.
        FrameEvictedError, StaleStreamError
            IndexErrors: for frame indices that are not held, or of another stream.

        Warns
        -----
        UserWarning
            Once each: if stacks do not go on as the space was read, if none of a lane's steps goes
            on from the one before it, if an episode begins with what the last one ended with.

        Notes
        -----
        After an error nothing of the step is in the buffer.

        An observation that is not what the lane's last step led to is a reset's, whenever it comes,
        and after `clear` and loading, too; stacks of newest frames begin anew with it. Under
        NEXT_STEP, the row after an end in which the environment resets itself begins with what the
        end led to; it is passed over.

        A lost life that ends an episode, but not the game, is no reset: the step after it counts,
        stacks run on, and there is no ``final_obs``. ALE's counters in `info` say so by themselves,
        but for an end with the first step after a reset, which is refused without `was_reset`. In
        other environments every end is followed by a reset unless `was_reset` says otherwise.
        """
        with self._lock:
            self._writer.settle()
            self._refuse_mapped()
            if self._is_single:
                if lanes is not None:
                    raise ValueError(f"lanes={lanes!r}: a buffer with n_envs=None has no lanes")
                obs, next_obs, action, reward, terminated, truncated, was_reset, fields = map(
                    _as_row,
                    (obs, next_obs, action, reward, terminated, truncated, was_reset, fields),
                )
            observations, n_lanes = self._observations, self.n_envs
            among = None if lanes is None else checked_lanes(lanes, n_lanes)
            n = n_lanes if among is None else len(among)
            said = checked_info(info, self.autoreset_mode)
            before = observations.checked(obs, "obs", n)
            after = observations.checked(next_obs, "next_obs", n)
            observations.refuse_one_memory(before, after)
            actions = self._actions.stored(action, n)
            rewards = checked_rewards(reward, n)
            ends = checked_bools("terminated", terminated, n)
            cuts = checked_bools("truncated", truncated, n)
            kept = self._transitions.fields.checked(fields, n)
            marked = None if was_reset is None else checked_bools("was_reset", was_reset, n)
            if among is not None:
                spread = Spread(among, n_lanes)
                before, after = list(map(spread, before)), list(map(spread, after))
                actions, rewards, ends, cuts = map(spread, (actions, rewards, ends, cuts))
                kept = {name: spread(values) for name, values in kept.items()}
                marked = None if marked is None else spread(marked)
                said = spread.info(said)
            told = self._resets.told(said, marked)
            if among is None and self._add_plainly(
                before, after, actions, rewards, ends, cuts, told
            ):
                return
            rows = Rows(actions, rewards, ends, cuts, kept)
            self._add(before, after, rows, told, said, among)

    def _add_plainly(
        self,
        before: list[AnyArray],
        after: list[AnyArray],
        actions: AnyArray,
        rewards: AnyArray,
        ends: Bools,
        cuts: Bools,
        told: Told,
    ) -> bool:
        """Add a step of all lanes if it is like most; say whether that is done."""
        entry = self._observations.entries[0]
        if not self._resets.none_is_near(told) or entry.is_watched:
            return False
        plain = self._plain_steps
        if plain is None or not plain.fits(self._transitions, 1 + len(self._sequences)):
            if not self._has_plain_steps:
                return False
            windows = self._all_windows
            plain = plain_steps_of(self._observations, self._transitions, windows)
            self._plain_steps, self._has_plain_steps = plain, plain is not None
            if plain is None:
                return False
        if len(self._drawn):
            self._settle(1)
        return plain.add(before[0], after[0], actions, rewards, ends, cuts, self._writer)

    def _add(
        self,
        before: list[AnyArray],
        after: list[AnyArray],
        rows: Rows,
        told: Told,
        said: Mapping[str, Any] | None,
        among: Int64s | None,
    ) -> None:
        """Add a step of all lanes, or of those ``among`` them, whose arguments have been checked.

        Where ``said`` is None, ``after`` has episodes' last observations, and what comes after an
        end is a reset's.
        """
        observations, transitions, resets = self._observations, self._transitions, self._resets
        course = resets.follow(
            told,
            rows.terminated,
            rows.truncated,
            lambda lanes: observations.repeat(before, lanes),
            among,
        )
        live, begins = course.live, course.begins
        bad = first_not_finite(rows.reward, live)
        if bad >= 0:
            raise ValueError(
                f"reward {rows.reward[bad]} of lane {bad} is not finite as float32; check the "
                "environment"
            )
        remarks: list[str] = []
        if course.n_replaced and said is not None:
            after = observations.with_final(after, course.replaced, said)
        if not course.n_live:
            resets.commit(course, told)
            return
        breaks = observations.plan(before, after, live, begins, transitions, remarks)
        if not resets.all_run and said is not None:
            remarks += self._remarks_on_no_reset(told, live)
        for remark in remarks:
            warnings.warn(remark, stacklevel=3)
        self._settle(live)
        held = Rows(
            np.array(rows.action),
            np.array(rows.reward),
            np.array(rows.terminated),
            np.array(rows.truncated),
            rows.fields,
        )
        step = AddStep(self._parts, after, held, course, told, breaks, said is None)
        self._writer.run(self._write, step, before, after)

    def add_rollout(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        next_obs: Any,
        *,
        fields: Mapping[str, Any] | None = None,
        lanes: npt.ArrayLike | None = None,
    ) -> None:
        """Add many steps at once, of all environments, such as those of a rollout or a data set.

        Parameters
        ----------
        obs, action, reward, terminated, truncated, next_obs
            As for `add`, with one more leading axis, of T steps in their order. ``next_obs`` is
            what each step led to: the last observation of an episode, too, and no reset's. It may
            share memory with ``obs``.
        fields : mapping of str to (T, n_envs, *field shape), optional
        lanes : sequence of int, or (n_envs,) bool, optional
            As for `add`.

        Raises
        ------
        TypeError, ValueError
            As `add`; nothing is added then. Frame indices and what is not a number are the only
            things that are looked at step by step.
        """
        with self._lock:
            self._writer.settle()
            self._refuse_mapped()
            among = None if lanes is None else checked_lanes(lanes, self.n_envs)
            n = self.n_envs if among is None else len(among)
            n_steps = _length_of(obs, "obs")
            lead = (n_steps,) if self._is_single else (n_steps, n)
            if self._is_single and lanes is not None:
                raise ValueError(f"lanes={lanes!r}: a buffer with n_envs=None has no lanes")

            def flat(values: Any, name: str) -> Any:
                return _flat(values, lead, name)

            total, observations = n_steps * n, self._observations
            before = observations.checked(flat(obs, "obs"), "obs", total)
            after = observations.checked(flat(next_obs, "next_obs"), "next_obs", total)
            actions = self._actions.stored(flat(action, "action"), total)
            rewards = checked_rewards(flat(reward, "reward"), total)
            ends = checked_bools("terminated", flat(terminated, "terminated"), total)
            cuts = checked_bools("truncated", flat(truncated, "truncated"), total)
            kept = self._transitions.fields.checked(flat(fields, "fields"), total)
            bad = first_not_finite(rewards, np.ones(total, np.bool_))
            if bad >= 0:
                raise ValueError(
                    f"reward {rewards[bad]} of step {bad // n} is not finite as float32; check the "
                    "environment"
                )
            spread = (lambda values: values) if among is None else Spread(among, self.n_envs)
            told = self._resets.told({}, None)
            for start in range(0, total, n):
                here = slice(start, start + n)
                rows = Rows(
                    spread(actions[here]),
                    spread(rewards[here]),
                    spread(ends[here]),
                    spread(cuts[here]),
                    {name: spread(values[here]) for name, values in kept.items()},
                )
                obs_now = [spread(values[here]) for values in before]
                self._add(obs_now, [spread(values[here]) for values in after], rows, told, None,
                          among)  # fmt: skip

    def add_episode(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: bool = True,
        truncated: bool | None = None,
        *,
        lane: int = 0,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a whole episode of one lane, such as one of a data set.

        Parameters
        ----------
        obs : (T + 1, *observation shape)
            With the last one; of a Dict space, a dict of such.
        action : (T, *action shape)
        reward : (T,)
        terminated, truncated : bool
            How it ended; left out, `truncated` is whether it did not terminate.
        lane : int
        fields : mapping of str to (T, *field shape), optional

        Raises
        ------
        TypeError, ValueError
            As `add_rollout`.
        """
        n_steps = _length_of(obs, "obs") - 1
        if n_steps < 1:
            raise ValueError(
                f"obs has {n_steps + 1} observations; an episode of one step has two, what it saw "
                "and what that led to"
            )
        last = np.arange(n_steps) == n_steps - 1
        cut = not terminated if truncated is None else truncated
        parts = (
            _part(obs, slice(None, -1)), action, reward, last & bool(terminated), last & bool(cut),
            _part(obs, slice(1, None)),
        )  # fmt: skip
        if self._is_single:
            self.add_rollout(*parts, fields=fields)
            return
        self.add_rollout(
            *(_with_lane(part) for part in parts), fields=_with_lane(fields), lanes=[lane]
        )

    def _write(self, step: AddStep, before: list[Any], after: list[Any]) -> None:
        self._writer.steps.append(step)
        self._observations.store(before, after)
        self._writer.untidy.append(step)

    def _remarks_on_no_reset(self, told: Told, live: Bools) -> list[str]:
        """Say, once, that a lane seems to go on from where its episode ended."""
        anew = self._resets.begin_anew()
        if self._has_warned_of_no_reset or not len(anew):
            return []
        same = self._observations.same[anew] & live[anew]
        goes_on = anew[same & (told.resets[anew] != NOT_RESET)]
        if not len(goes_on):
            return []
        self._has_warned_of_no_reset = True
        beginning = f"lane {goes_on[0]} ended, and its next obs is what it ended with"
        if self.autoreset_mode == "disabled":
            return [
                f"{beginning}, though autoreset_mode='disabled' says that you reset it: if the "
                "environment resets itself in the next step, this step is no transition, and "
                "autoreset_mode must be 'next_step'; if its life was lost and the game goes on, "
                "pass was_reset"
            ]
        return [
            f"{beginning}, though it was reset: if the environment writes all its observations "
            "into one array, the reset has overwritten final_obs. Let it return obs.copy(); if a "
            "life was lost and the game goes on, pass was_reset"
        ]

    def cut(self, lanes: npt.ArrayLike | None = None) -> None:
        """Say that lanes were reset from outside, all of them by default.

        Needed only where a reset's first observation may equal what the last step returned, bit
        for bit; any other one is noticed.
        """
        with self._lock:
            named = np.zeros(self.n_envs, np.bool_)
            named[checked_lanes(lanes, self.n_envs)] = True
            self._writer.settle()
            self._writer.run(self._writer.steps.append, CutStep(self._parts, named))

    def clear(self) -> None:
        """Forget all transitions, whose names start over, and all frames that were not given.

        Environments go on as they stand: what is added next is known to follow on what their last
        steps led to, or not. Batches that were drawn ahead are gone.
        """
        with self._lock:
            self._writer.settle()
            self._refuse_mapped()
            for drawn in list(self._drawn):
                # A `sample` in another thread gets what it has drawn. Frames that were given may
                # be of a stream that has ended: whoever asks for that batch will hear of it.
                with contextlib.suppress(FrameEvictedError, StaleStreamError):
                    drawn.decode()
                drawn.is_gone = True
            self._drawn.clear()
            self._writer.run(self._clear)

    def _clear(self) -> None:
        self._writer.steps.append(
            ClearStep(self, ("_transitions", "_tree", "_windows", "_sequences"))
        )
        self._observations.clear()
        self._begin(self._transitions.n_slots)


class Spread:
    """Puts rows of some lanes in their places among all."""

    def __init__(self, lanes: Int64s, n_lanes: int) -> None:
        self._lanes = lanes
        self._n_lanes = n_lanes

    def __call__(self, values: AnyArray) -> AnyArray:
        """Return ``(n_lanes, ...)``, zeros in the other lanes."""
        spread: AnyArray = np.zeros((self._n_lanes, *values.shape[1:]), values.dtype)
        spread[self._lanes] = values
        return spread

    def info(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `add` looks at of an info, but ALE's counters."""
        return {
            name: self._each(said[name]) for name in ("final_obs", "_final_obs") if name in said
        }

    def _each(self, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {key: self._each(each) for key, each in values.items()}
        return self(np.asarray(values))


def _as_row(value: Any) -> Any:
    """Give what one environment gives a leading axis."""
    if isinstance(value, (np.ndarray, np.generic, int, float)):  # most, and fast to tell
        return np.asarray(value)[None]
    if isinstance(value, Mapping):
        return {key: _as_row(each) for key, each in value.items()}
    return value if value is None else np.asarray(value)[None]


def _with_lane(value: Any) -> Any:
    """Give steps of one lane an axis of lanes behind that of time."""
    if isinstance(value, Mapping):
        return {key: _with_lane(each) for key, each in value.items()}
    return value if value is None else np.asarray(value)[:, None]


def _part(value: Any, which: slice) -> Any:
    if isinstance(value, Mapping):
        return {key: np.asarray(each)[which] for key, each in value.items()}
    return np.asarray(value)[which]


def _length_of(values: Any, name: str) -> int:
    if isinstance(values, Mapping):
        lengths = {_length_of(each, name) for each in values.values()}
        if len(lengths) != 1:
            raise ValueError(f"the entries of {name} have {lengths} steps; all need as many")
        return lengths.pop()
    shape = np.shape(values)
    if not shape:
        raise ValueError(f"{name} has no axis of steps")
    return int(shape[0])


def _flat(values: Any, lead: tuple[int, ...], name: str) -> Any:
    """Make one axis of the leading ones, after a look at them."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        return {key: _flat(each, lead, f"{name}[{key!r}]") for key, each in values.items()}
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = as_array(name, values)
    if array.shape[: len(lead)] != lead:
        raise ValueError(
            f"{name} has shape {array.shape}; it must begin with {lead}, the steps"
            f"{' and the lanes' if len(lead) > 1 else ''} of obs"
        )
    return array.reshape(-1, *array.shape[len(lead) :])
