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
from compressarray.replay.parts import BufferParts
from compressarray.replay.resets import NOT_RESET, Told
from compressarray.replay.steps import AddStep, ClearStep, CutStep, Rows
from compressarray.replay.transitions import first_not_finite

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
            observations, transitions, resets = self._observations, self._transitions, self._resets
            n = transitions.n_lanes
            said = checked_info(info, self.autoreset_mode)
            before = observations.checked(obs, "obs")
            after = observations.checked(next_obs, "next_obs")
            observations.refuse_one_memory(before, after)
            actions = self._actions.stored(action, n)
            rewards = checked_rewards(reward, n)
            ends = checked_bools("terminated", terminated, n)
            cuts = checked_bools("truncated", truncated, n)
            kept = self._transitions.fields.checked(fields, n)
            marked = None if was_reset is None else checked_bools("was_reset", was_reset, n)
            told = resets.told(said, marked)
            course = resets.follow(
                told, ends, cuts, lambda lanes: observations.repeat(before, lanes)
            )
            live, begins = course.live, course.begins
            bad = first_not_finite(rewards, live)
            if bad >= 0:
                raise ValueError(
                    f"reward {np.asarray(reward)[bad]} of lane {bad} is not finite as float32; "
                    "check the environment"
                )
            remarks: list[str] = []
            if course.n_replaced:
                after = observations.with_final(after, course.replaced, said)
            if not course.n_live:
                resets.commit(course, told)
                return
            breaks = observations.plan(before, after, live, begins, transitions, remarks)
            if not resets.all_run:
                remarks += self._remarks_on_no_reset(told)
            for remark in remarks:
                warnings.warn(remark, stacklevel=2)
            self._settle(live)
            rows = Rows(np.array(actions), np.array(rewards), np.array(ends), np.array(cuts), kept)
            step = AddStep(self._parts, after, rows, course, told, breaks)
            self._writer.run(self._write, step, before, after)

    def _write(self, step: AddStep, before: list[Any], after: list[Any]) -> None:
        self._writer.steps.append(step)
        self._observations.store(before, after)
        self._writer.untidy.append(step)

    def _remarks_on_no_reset(self, told: Told) -> list[str]:
        """Say, once, that a lane seems to go on from where its episode ended."""
        anew = self._resets.begin_anew()
        if self._has_warned_of_no_reset or not len(anew):
            return []
        goes_on = anew[self._observations.same[anew] & (told.resets[anew] != NOT_RESET)]
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
                    drawn.result()
                drawn.is_gone = True
            self._drawn.clear()
            self._writer.run(self._clear)

    def _clear(self) -> None:
        self._writer.steps.append(
            ClearStep(self, ("_transitions", "_tree", "_windows", "_sequences"))
        )
        self._observations.clear()
        self._begin(self._transitions.n_slots)
