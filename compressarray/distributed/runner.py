"""The side of an environment runner: steps, and what is new since a learner last asked."""

from __future__ import annotations

import secrets
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.feed import ChangeFeed
from compressarray.feeding import HEAD
from compressarray.replay import ReplayBuffer

try:
    VERSION = metadata.version("compressarray")
except metadata.PackageNotFoundError:  # run from a folder, without being installed
    VERSION = "unknown"
Position = tuple[bytes, int]  # the id of a feed, and the number of its message that was taken last
Priorities = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]  # names, and theirs


class Delivery(NamedTuple):
    """What a runner answers.

    Attributes
    ----------
    version : str
        Of this library, there.
    life : bytes
        Another one each time that the runner begins anew, with an empty buffer.
    message : bytes
        Of a `ChangeFeed`.
    priorities : tuple of (names, priorities), or None
        Those that the runner gives to transitions that are new.
    report : Any
        What `EnvRunner.report` returned.
    """

    version: str
    life: bytes
    message: bytes
    priorities: Priorities | None
    report: Any


class _Sent(NamedTuple):
    """What a learner was sent last."""

    feed: ChangeFeed
    position: Position  # where it stands once it has taken it
    message: bytes
    priorities: Priorities | None


class Outbox:
    """What one buffer tells several learners, each of which may lose what it was sent.

    What was sent is kept until the learner has asked for what follows on it, and sent again where
    it has not. A learner that is elsewhere altogether is sent everything.

    Parameters
    ----------
    buffer : ReplayBuffer
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self._sent: dict[str, _Sent] = {}
        self._waiting: dict[str, list[Priorities]] = {}

    def note(self, priorities: Priorities) -> None:
        """Have every learner told of the priorities that new transitions begin with."""
        for waiting in self._waiting.values():
            waiting.append(priorities)

    def read(self, learner: str, has: Position) -> tuple[bytes, Priorities | None]:
        """Return what follows on what a learner has.

        Parameters
        ----------
        learner : str
            Its name.
        has : tuple of (bytes, int)
            `Replica.position` there.

        Returns
        -------
        message : bytes
            For its replica.
        priorities : tuple of (names, priorities), or None
        """
        sent = self._sent.get(learner)
        if sent is not None and has != sent.position:
            feed_id, number = sent.position
            if number == 1 or has == (feed_id, number - 1):
                return sent.message, sent.priorities  # it got lost, or was damaged
            sent = None
        feed = ChangeFeed(self.buffer) if sent is None else sent.feed
        message = feed.read()
        waiting = self._waiting.get(learner)
        priorities = None
        if waiting:
            names, values = (np.concatenate(each) for each in zip(*waiting, strict=True))
            priorities = names, values
        _, *position, _ = HEAD.unpack_from(message)
        self._sent[learner] = _Sent(feed, (position[0], position[1]), message, priorities)
        self._waiting[learner] = []
        return message, priorities


class EnvRunner:
    """Environments, and a buffer that their steps go to: the base of one's own runners.

    A subclass makes its environments and ``self.buffer``, a `ReplayBuffer` without priorities, and
    has `step`. Steps are taken when a learner asks for them, so that no runner runs ahead of all
    learners, and none waits for a slow one.
    """

    buffer: ReplayBuffer
    _life = b""
    _outbox: Outbox | None = None
    _weights: tuple[str, int] | None = None  # whose, and their number

    def step(self) -> None:
        """Act once in each lane, and add what comes of it to ``self.buffer``."""
        raise NotImplementedError

    def set_weights(self, weights: Any) -> None:
        """Act by these weights from now on; told where a learner has published some."""

    def priorities(self) -> tuple[npt.ArrayLike, npt.ArrayLike] | None:
        """Return names of new transitions and the priorities that they begin with, if any.

        Without, they begin with the largest there is. Called once after each `collect`'s steps;
        transitions whose window of steps is not complete are passed over.
        """
        return None

    def report(self) -> Any:
        """Return what a learner is to hear of, such as the returns of episodes that have ended."""
        return None

    def collect(
        self, learner: str, has: Position, n_steps: int, weights: tuple[int, Any] | None = None
    ) -> Delivery:
        """Take steps, and return all that is new to a learner.

        Parameters
        ----------
        learner : str
            Its name.
        has : tuple of (bytes, int)
            Where its replica stands.
        n_steps : int
            Of each lane; 0 for what others have asked for.
        weights : tuple of (int, Any), optional
            A number, and the weights: taken where the number is new.
        """
        outbox = self._outbox
        if outbox is None or outbox.buffer is not self.buffer:
            self._life, outbox = secrets.token_bytes(8), Outbox(self.buffer)
            self._outbox = outbox
        if weights is not None and self._weights != (learner, weights[0]):
            self.set_weights(self._fetched(weights[1]))
            self._weights = learner, weights[0]
        for _ in range(n_steps):
            self.step()
        given = self.priorities() if n_steps else None
        if given is not None:
            outbox.note((np.asarray(given[0], np.int64), np.asarray(given[1], np.float64)))
        message, priorities = outbox.read(learner, has)
        return Delivery(VERSION, self._life, message, priorities, self.report())

    def _fetched(self, weights: Any) -> Any:
        """What a transport has sent as weights."""
        return weights
