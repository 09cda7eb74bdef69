"""`RayReplay`: a learner's replay memory, of what runners on a Ray cluster have."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from compressarray.distributed import JointReplay
from compressarray.errors import CorruptFrameError

_log = logging.getLogger(__name__)


class RayReplay(JointReplay):
    """A learner's replay memory: a replica of each runner's buffer, kept in step by Ray.

    Runners are asked for steps no faster than `samples_per_insert` allows, and what has come is
    taken whenever something is drawn, ahead or not; where too little has come, that waits.

    Parameters
    ----------
    runners : mapping of str to actor handle
        From `start_runners`.
    depth : int
        Requests that each runner has at once: with 2, it takes the next steps while the last ones
        are on their way.
    poll_s : float
        Seconds between looks at what has come, at least.
    retry_s : float
        Seconds until a runner that has died, or was refused, is asked again.
    timeout_s : float
        Seconds that drawing waits for runners that bring nothing; then it raises TimeoutError.
    **how
        For `JointReplay`.

    Attributes
    ----------
    reports : list
        What runners have reported (`EnvRunner.report`) and was not None; yours to clear.

    Notes
    -----
    What was taken stays, whichever runner dies; a runner that Ray has started anew has an empty
    buffer, which is another one here. A learner that dies goes on from its `checkpoint`.
    """

    def __init__(
        self,
        runners: Mapping[str, Any],
        *,
        depth: int = 2,
        poll_s: float = 0.005,
        retry_s: float = 1.0,
        timeout_s: float = 300.0,
        **how: Any,
    ) -> None:
        if not runners:
            raise ValueError("no runners were given: start_runners makes them")
        if depth < 1:
            raise ValueError(f"depth={depth}: each runner needs at least 1 request")
        super().__init__(**how)
        self._handles = dict(runners)
        self._depth = depth
        self._poll_s, self._retry_s, self._timeout_s = poll_s, retry_s, timeout_s
        self._pending: dict[str, deque[Any]] = {name: deque() for name in runners}
        self._not_before = dict.fromkeys(runners, 0.0)
        self._polled = self._heard = time.monotonic()
        self._weights: tuple[int, list[Any]] | None = None
        self._counts = {"deaths": 0, "damaged": 0, "out_of_step": 0}
        self.reports: list[Any] = []

    # -- runners -----------------------------------------------------------------------------

    def publish(self, weights: Any) -> None:
        """Have runners act by these weights from the next request on, those begun anew as well.

        They are put into Ray's object store once, whatever the number of runners.
        """
        number = 1 if self._weights is None else self._weights[0] + 1
        self._weights = number, [ray.put(weights)]

    def collect(self, timeout_s: float = 0.0) -> int:
        """Take what has come, and ask for more where more may come.

        Parameters
        ----------
        timeout_s : float
            Seconds to wait at most, where nothing has come yet.

        Returns
        -------
        int
            Transitions that came.

        Raises
        ------
        RayTaskError
            If a runner's own code has raised; the others go on, and so does it when asked again.
        RuntimeError
            If a runner's ``__init__`` has raised.
        ValueError
            If a runner does not fit to the others, see `JointReplay.take`.
        """
        with self._lock:
            self._ask()
            first = {queue[0]: name for name, queue in self._pending.items() if queue}
            if not first:
                time.sleep(min(timeout_s, self._retry_s))
                return 0
            ready, _ = ray.wait(list(first), num_returns=1, timeout=timeout_s)
            gained = 0
            while ready:
                gained += sum(self._take_next(first[reference]) for reference in ready)
                first = {queue[0]: name for name, queue in self._pending.items() if queue}
                ready = []
                if first:
                    ready, _ = ray.wait(list(first), num_returns=len(first), timeout=0)
            self._polled = time.monotonic()
            self._ask()
            return gained

    def _ask(self) -> None:
        now = time.monotonic()
        for name, queue in self._pending.items():
            if now < self._not_before[name]:
                continue
            while len(queue) < self._depth:
                request = self.request(name)
                if queue and not request.n_steps:  # nothing may come: one that asks is enough
                    self.withdraw(name)
                    break
                queue.append(self._handles[name].collect.remote(*request, self._weights))

    def _take_next(self, name: str) -> int:
        queue = self._pending[name]
        reference = queue.popleft()
        try:
            delivery = ray.get(reference)
        except RayActorError as error:
            if "creation task" in str(error):  # Ray will not try again
                self._start_over(name, self._retry_s)
                reason = str(error).strip().splitlines()[-1].strip()
                raise RuntimeError(f"{name} cannot be made: {reason}") from error
            self._counts["deaths"] += 1
            _log.warning("%s has died, and is waited for: %s", name, str(error).partition("\n")[0])
            self._start_over(name, self._retry_s)
            return 0
        except RayTaskError:
            self._start_over(name, self._retry_s)
            raise
        self._heard = time.monotonic()
        try:
            gained = self.take(name, delivery)
        except CorruptFrameError as error:
            self._counts["damaged"] += 1
            _log.warning("%s has to send once more: %s", name, error)
            self._start_over(name)
            return 0
        except ValueError as error:
            follows = "does not follow on" not in str(error)
            self._start_over(name, self._retry_s if follows else 0.0)
            if follows:
                raise
            self._counts["out_of_step"] += 1
            return 0
        if delivery.report is not None:
            self.reports.append(delivery.report)
        return gained

    def _start_over(self, name: str, after_s: float = 0.0) -> None:
        """Let go of what a runner was asked for, and ask it again after a while."""
        self._not_before[name] = time.monotonic() + after_s
        self._pending[name].clear()
        self.forget(name)

    # -- drawing -----------------------------------------------------------------------------

    def _refuse_early(self, size: int) -> None:
        """Wait until so many transitions may be drawn: whatever draws, ahead or not, comes here.

        Raises
        ------
        TimeoutError
            If no runner has answered for ``timeout_s``.
        """
        if time.monotonic() - self._polled >= self._poll_s:
            self.collect()
        self._heard = time.monotonic()
        while not self.may_sample(size):
            self.collect(timeout_s=min(1.0, self._timeout_s))
            waited = time.monotonic() - self._heard
            if waited > self._timeout_s:
                raise TimeoutError(
                    f"no runner has answered for {waited:.0f} s, and {size} transitions cannot be "
                    f"drawn yet ({self.limiter.inserts} have come); `ray list actors` says how "
                    "they are"
                )

    # -- accounts ----------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Report what `JointReplay.stats` does.

        And ``deaths`` of runners, messages that came ``damaged``, and ``out_of_step``: all was sent
        once more.
        """
        return {**super().stats(), **self._counts}
