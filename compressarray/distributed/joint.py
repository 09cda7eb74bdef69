"""`JointReplay`: a learner's replay memory, of replicas of what many runners have."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressarray.distributed.limiting import SamplesPerInsert
from compressarray.distributed.runner import VERSION, Delivery, Position
from compressarray.errors import CorruptFrameError
from compressarray.feed import Replica
from compressarray.format import container
from compressarray.replay import ReplayBuffer, ReplayEnsemble
from compressarray.replay.checks import checked_int
from compressarray.replay.drawing import Drawn
from compressarray.replay.files import bytes_of, rng_from
from compressarray.snapshots import int_of, part_of

_KIND = "JointReplay"
_KEPT = 2  # checkpoints that can be restored


class Request(NamedTuple):
    """What to ask a runner for: the arguments of `EnvRunner.collect`."""

    learner: str
    has: Position
    n_steps: int


class _Life:
    """What is held of a runner since it last began anew."""

    def __init__(self, key: int, name: bytes, replica: Replica) -> None:
        self.key = key
        self.name = name
        self.replica = replica
        self.n_counted = 0  # transitions that it has had, as far as they were counted
        self.place = ""  # of its checkpoints: another one each time that everything comes


class _Runner:
    """A runner, as a learner sees it."""

    def __init__(self) -> None:
        self.lives: list[_Life] = []  # oldest first: the last one goes on
        self.asked: deque[tuple[Position, int]] = deque()  # where it will stand, and new ones

    @property
    def stands(self) -> Position:
        """Where the replica will stand once all that was asked for has come."""
        if self.asked:
            return self.asked[-1][0]
        return self.lives[-1].replica.position if self.lives else (b"", 0)


class JointReplay(ReplayEnsemble):
    """A learner's replay memory: a replica of each runner's buffer, drawn from as if one.

    It says what to ask each runner for (`request`), and takes what comes (`take`); who carries it
    is somebody else's affair. A runner that begins anew is another one to it: what it had before
    stays, until as much has come after it as a buffer of its holds.

    Parameters
    ----------
    learner : str
        A name of its own among several learners.
    steps : int
        Of each lane that a runner is asked for at once.
    samples_per_insert, min_size, error_buffer
        See `SamplesPerInsert`. A run of steps counts as so many transitions.
    max_times_drawn : int, optional
        See `ReplayEnsemble`.
    prioritized : bool
        Draw in proportion to priorities, which are this learner's own.
    alpha, beta, epsilon : float
        See `ReplayBuffer`.
    device, seed
        See `ReplayEnsemble`.

    Examples
    --------
    >>> import numpy as np
    >>> from gymnasium.spaces import Box, Discrete
    >>> from compressarray import ReplayBuffer
    >>> from compressarray.distributed import EnvRunner, JointReplay
    >>> class Runner(EnvRunner):
    ...     def __init__(self):
    ...         self.buffer = ReplayBuffer(100, Box(0, 255, (4, 84, 84), np.uint8), Discrete(6))
    ...     def step(self):
    ...         obs = np.zeros((2, 1, 4, 84, 84), np.uint8)
    ...         self.buffer.add(obs[0], [1], [0.0], [False], [False], obs[1])
    >>> runner, replay = Runner(), JointReplay(steps=8, seed=1)
    >>> for _ in range(2):
    ...     gained = replay.take("one", runner.collect(*replay.request("one")))
    >>> gained, replay.sample(4).obs.shape
    (8, (4, 4, 84, 84))
    """

    def __init__(
        self,
        *,
        learner: str = "learner",
        steps: int = 32,
        samples_per_insert: float | None = None,
        min_size: int = 1,
        error_buffer: float | None = None,
        max_times_drawn: int | None = None,
        prioritized: bool = False,
        alpha: float = 0.6,
        beta: float = 0.4,
        epsilon: float = 1e-6,
        device: Any = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(beta=beta, max_times_drawn=max_times_drawn, device=device, seed=seed)
        self.learner = learner
        self.steps = checked_int("steps", steps, 1)
        self.limiter = SamplesPerInsert(samples_per_insert, min_size, error_buffer)
        self._priorities = (
            {"alpha": alpha, "beta": beta, "epsilon": epsilon} if prioritized else None
        )
        self._runners: dict[str, _Runner] = {}
        self._next_key = 0
        self._n_checkpoints = 0
        self._received = {"messages": 0, "bytes": 0, "fills": 0}

    # -- runners -----------------------------------------------------------------------------

    def request(self, runner: str) -> Request:
        """Say what to ask a runner for; each is to be taken, or `forget` called.

        The first one asks for no steps, but for what there is.
        """
        with self._lock:
            known = self._runners.setdefault(runner, _Runner())
            feed_id, number = known.stands
            n_steps = n_new = 0
            if known.lives and known.lives[-1].replica.number:
                n_new = self.steps * known.lives[-1].replica.buffer.n_envs
                asked = sum(n for each in self._runners.values() for _, n in each.asked)
                if self.limiter.may_insert(n_new, asked):
                    n_steps = self.steps
                else:
                    n_new = 0
            known.asked.append(((feed_id, number + 1) if number else (b"", 0), n_new))
            return Request(self.learner, (feed_id, number), n_steps)

    def withdraw(self, runner: str) -> None:
        """Hear that the last request to a runner was not sent."""
        with self._lock:
            self._runners[runner].asked.pop()

    def forget(self, runner: str) -> None:
        """Hear that what a runner was asked for will not come."""
        with self._lock:
            self._runners.setdefault(runner, _Runner()).asked.clear()

    def take(self, runner: str, delivery: Delivery) -> int:
        """Take what a runner has answered; return how many transitions came.

        Raises
        ------
        CorruptFrameError
            If it was damaged on its way. Ask again: it is sent once more.
        ValueError
            If it does not follow on what is here (ask again, and all is sent), the runner has
            another version of this library, or buffers of another kind than the other runners.

        Whatever is raised, all is as it was.
        """
        with self._lock:
            known = self._runners.setdefault(runner, _Runner())
            expected = known.asked.popleft()[0] if known.asked else None
            try:
                gained = self._taken(runner, known, delivery)
            except BaseException:
                known.asked.clear()  # what was asked for after it does not follow, either
                raise
            self.limiter.inserts += gained
            stands = known.lives[-1].replica.position
            if known.asked and expected != stands:
                # It has begun anew, and answers what it was asked before that with the same again.
                known.asked = deque((stands, n) for _, n in known.asked)
            return gained

    def _taken(self, runner: str, known: _Runner, delivery: Delivery) -> int:
        if delivery.version != VERSION:
            raise ValueError(
                f"runner {runner!r} has version {delivery.version} of compressarray, and this "
                f"learner {VERSION}: install the same one everywhere"
            )
        life = known.lives[-1] if known.lives else None
        is_new = life is None or life.name != delivery.life
        if life is None or is_new:
            life = _Life(self._next_key, delivery.life, Replica(priorities=self._priorities))
        try:
            life.replica.apply(delivery.message)
        except CorruptFrameError:
            raise
        except ValueError as error:
            raise ValueError(f"runner {runner!r}: {error}") from None
        buffer, before = life.replica.buffer, self._buffers.get(life.key)
        if buffer is not before:
            if before is not None and self._priorities is not None:
                buffer._take_priorities_of(before)
            try:
                self.put(life.key, buffer)
            except ValueError as error:
                raise ValueError(f"runner {runner!r}: {error}") from None
            life.place = secrets.token_hex(8)
            self._received["fills"] += 1
        if is_new:
            known.lives.append(life)
            self._next_key += 1
        self._received["messages"] += 1
        self._received["bytes"] += len(delivery.message)
        if delivery.priorities is not None and self._priorities is not None:
            buffer.update_priorities(*delivery.priorities)
        self._let_go(known)
        n_now = int(buffer.position.sum())
        gained, life.n_counted = n_now - life.n_counted, n_now
        return gained

    def _let_go(self, known: _Runner) -> None:
        """Drop what a runner had before, where as much as a buffer holds has come since."""
        n_since = len(known.lives[-1].replica.buffer)
        for life in known.lives[-2::-1]:
            buffer = self._buffers[life.key]
            if n_since >= buffer.capacity:
                self.remove(life.key)
                known.lives.remove(life)
            n_since += len(buffer)

    # -- drawing -----------------------------------------------------------------------------

    def may_sample(self, batch_size: int) -> bool:
        """Say whether a batch may be drawn now: runners are neither too far behind, nor empty."""
        with self._lock:
            n = self.n_samplable
            enough = n >= batch_size if self._most is not None else n > 0
            self.limiter.fit(batch_size, self._steps_at_once())
            return enough and self.limiter.may_sample(batch_size)

    def _draw(self, batch_size: int, replace: bool, beta: float | None) -> Drawn[Any]:
        with self._lock:
            size = checked_int("batch_size", batch_size, 1)
            self._refuse_early(size)
            drawn = super()._draw(size, replace, beta)
            self.limiter.samples += size
            return drawn

    def _draw_sequences(
        self, batch_size: int, length: int, replace: bool, how: dict[str, Any]
    ) -> Drawn[Any]:
        with self._lock:
            size = checked_int("batch_size", batch_size, 1) * checked_int("length", length, 1)
            self._refuse_early(size)
            drawn = super()._draw_sequences(batch_size, length, replace, how)
            self.limiter.samples += size
            return drawn

    def _refuse_early(self, size: int) -> None:
        limiter = self.limiter
        limiter.fit(size, self._steps_at_once())
        if not limiter.may_sample(size):
            raise ValueError(
                f"{size} transitions cannot be drawn yet: {limiter.inserts} have come and "
                f"{limiter.samples} were drawn (min_size={limiter.min_size}, samples_per_insert="
                f"{limiter.samples_per_insert}). Take more from the runners first; may_sample says "
                "when it is enough"
            )

    def _steps_at_once(self) -> int:
        lanes = [each.n_envs for each in self._buffers.values()]
        return self.steps * max(lanes, default=1)

    # -- accounts ----------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Report what is held and what has come.

        Returns
        -------
        dict
            ``runners``, ``lives`` (buffers that runners have begun and that are held),
            ``transitions``, ``samplable``, ``inserts``, ``samples``, ``samples_per_insert`` (the
            ratio so far), ``messages``, ``bytes`` (of messages), ``fills`` (messages that brought
            everything), ``bytes_per_insert`` and ``nbytes_stored``.
        """
        with self._lock:
            inserts, samples = self.limiter.inserts, self.limiter.samples
            return {
                "runners": len(self._runners),
                "lives": len(self._buffers),
                "transitions": len(self),
                "samplable": self.n_samplable,
                "inserts": inserts,
                "samples": samples,
                "samples_per_insert": samples / max(inserts, 1),
                **self._received,
                "bytes_per_insert": self._received["bytes"] / max(inserts, 1),
                "nbytes_stored": self.nbytes_stored,
            }

    # -- checkpoints -------------------------------------------------------------------------

    def checkpoint(self, path: str | os.PathLike[str]) -> int:
        """Write a checkpoint, of each buffer only what has changed; runners may go on meanwhile.

        Parameters
        ----------
        path : str or path
            A directory for those of this learner alone.

        Returns
        -------
        int
            Its number, for `restore`. The last two can be restored at any time.

        Raises
        ------
        OSError
            If the disk is full, or somebody else writes there; what could be restored before can
            be restored still.
        """
        folder = Path(path)
        with self._lock:
            folder.mkdir(exist_ok=True)
            number = self._n_checkpoints + 1
            tree = {
                "next_key": self._next_key,
                "limiter": self.limiter.state(),
                "rng": np.frombuffer(bytes_of(self._rng), np.uint8),
                "beta": self.beta,
                "runners": tuple(
                    {
                        "name": name,
                        "lives": tuple(self._life_tree(folder, life) for life in runner.lives),
                    }
                    for name, runner in self._runners.items()
                ),
            }
            container.save(folder / f"{number:08d}.joint", _KIND, tree)
            self._n_checkpoints = number
            _delete_old(folder, number)
            return number

    def _life_tree(self, folder: Path, life: _Life) -> dict[str, Any]:
        buffer, times = self._buffers[life.key], self._times.get(life.key)
        return {
            "key": life.key,
            "name": life.name.hex(),
            "place": life.place,
            "n_counted": life.n_counted,
            "at": buffer.checkpoint(folder / f"buffer-{life.place}"),
            "times": None if times is None else times.caught_up(),
        }

    def restore(self, path: str | os.PathLike[str], at: int | None = None) -> None:
        """Become what a checkpoint was written of; this has drawn nothing and heard nobody yet.

        Runners that are there still send everything once more, and priorities stay.

        Parameters
        ----------
        path : str or path
            Where `checkpoint` wrote to.
        at : int, optional
            The number that it returned; left out, the newest one.

        Raises
        ------
        FileNotFoundError, LookupError
            If there are no checkpoints, or none of that number.
        CorruptFrameError
            A ValueError: if they are damaged.
        ValueError
            If this is in use already, or another one than wrote it in what it draws by.
        """
        folder = Path(path)
        numbers = _numbers_in(folder)
        if not numbers:
            raise FileNotFoundError(f"there are no checkpoints in {str(folder)!r}")
        number = numbers[-1] if at is None else at
        if number not in numbers:
            raise LookupError(
                f"{str(folder)!r} has no checkpoint {number}; it has {numbers[0]} to {numbers[-1]}"
            )
        with self._lock:
            if self._runners:
                raise ValueError("restore is for a replay that has heard of no runner yet")
            tree = container.load(folder / f"{number:08d}.joint", _KIND)
            runners, buffers, times = {}, {}, {}
            for of_runner in part_of(tree, "runners"):
                runner = runners[str(part_of(of_runner, "name"))] = _Runner()
                for held in part_of(of_runner, "lives"):
                    life = _Life(
                        int_of(held, "key", 0),
                        bytes.fromhex(part_of(held, "name")),
                        Replica(priorities=self._priorities),
                    )
                    life.place = bytes.fromhex(part_of(held, "place")).hex()
                    life.n_counted = int_of(held, "n_counted", 0)
                    buffers[life.key] = ReplayBuffer.restore(
                        folder / f"buffer-{life.place}", int_of(held, "at", 1), device=None
                    )
                    times[life.key] = part_of(held, "times")
                    runner.lives.append(life)
            rng = rng_from(part_of(tree, "rng"))
            for buffer in buffers.values():
                if buffer.prioritized != (self._priorities is not None):
                    raise ValueError(
                        f"the checkpoint has prioritized={buffer.prioritized}, and this has not"
                    )
            for key, buffer in buffers.items():
                self.put(key, buffer)
                if key in self._times and times[key] is not None:
                    self._times[key].set_to(times[key])
            self.limiter.restore(part_of(tree, "limiter"))
            self.beta = float(part_of(tree, "beta"))
            self._next_key = int_of(tree, "next_key", 0)
            self._n_checkpoints = number
            self._runners = runners
            self.seed(rng)


def _numbers_in(folder: Path) -> list[int]:
    return sorted(int(each.stem) for each in folder.glob("*.joint") if each.stem.isdecimal())


def _delete_old(folder: Path, newest: int) -> None:
    """Delete all but the last checkpoints, and the buffers that none of them has."""
    needed: set[str] = set()
    for number in _numbers_in(folder):
        path = folder / f"{number:08d}.joint"
        if not newest - _KEPT < number <= newest:
            path.unlink(missing_ok=True)
            continue
        for runner in container.load(path, _KIND)["runners"]:
            needed.update(f"buffer-{life['place']}" for life in runner["lives"])
    for place in folder.glob("buffer-*"):
        if place.name not in needed:
            shutil.rmtree(place, ignore_errors=True)
