"""Arrays and buffers that another process of this machine writes: the reader's end."""

from __future__ import annotations

import os
import platform
import socket
from types import TracebackType
from typing import Any

from compressarray.array import DiffFrameArray
from compressarray.feed import Replica
from compressarray.replay import ReplayBuffer
from compressarray.replay.checks import checked_generator
from compressarray.sharing import ERROR, HAS_ABSTRACT_NAMES, LENGTH, SharedHandle, receive

WAIT_S = 60.0


class Attached:
    """What another process shares, as it was at the last `update`; made by `attach`.

    Each frame is wholly old or wholly new, and so is each transition: what is read between two
    updates stays as it is, whatever the writer does meanwhile. A process that is forked off has a
    connection of its own; workers of a DataLoader draw apart.

    Attributes
    ----------
    handle : SharedHandle
        What it was made from; `attach` it again in another process.
    """

    def __init__(self, handle: SharedHandle, seed: Any, wait_s: float) -> None:
        self.handle = handle
        self._wait_s = wait_s
        self._replica = Replica()
        self._connection: tuple[int, socket.socket] | None = None
        # The random state of a buffer's draws, and the process that drew from it last.
        self._drawing = checked_generator(seed), 0
        self.update()

    @property
    def array(self) -> DiffFrameArray:
        """The array; to be read, not written: after a write it can be updated no more."""
        return self._replica.array

    @property
    def buffer(self) -> ReplayBuffer:
        """The buffer, with draws of its own; as `array`."""
        return self._replica.buffer

    def update(self) -> None:
        """Take what the writer has changed, in time proportional to that.

        Raises
        ------
        ConnectionError
            If the writer has gone. What was read so far can be read on.
        TimeoutError
            If it has not answered for as long as was to be waited, for it is stopped.
        ValueError
            If the copy was written to.
        """
        handle = self.handle
        try:
            message = self._asked()
        except TimeoutError:
            self.close()
            raise TimeoutError(
                f"process {handle.pid}, which shares this {handle.kind}, has not answered for "
                f"{self._wait_s:g} s; is it stopped? Try again, or give attach a longer timeout"
            ) from None
        except OSError as error:
            self.close()
            raise ConnectionError(_why_gone(handle)) from error
        except BaseException:  # the rest of an answer may be on its way: it is nobody's now
            self.close()
            raise
        if message[0] == ERROR:
            raise RuntimeError(
                f"process {handle.pid} could not say what has changed: {message[1:].decode()}"
            )
        is_buffer = handle.kind == ReplayBuffer._kind
        if is_buffer and self._replica.number:
            self._drawing = self.buffer._rng, self.buffer._drew_in
        try:
            self._replica.apply(message)
        except BaseException:  # the next message would not follow on what is held: begin anew
            self.close()
            raise
        if is_buffer:  # which draws as the writer's does, by now
            rng, self.buffer._drew_in = self._drawing
            self.buffer._draw_with(rng)

    def _asked(self) -> bytearray:
        here = os.getpid()
        if self._connection is None or self._connection[0] != here:
            family = socket.AF_UNIX if HAS_ABSTRACT_NAMES else socket.AF_INET
            connection = socket.socket(family)
            self._connection = here, connection
            connection.settimeout(self._wait_s)
            connection.connect(self.handle.address)
        connection = self._connection[1]
        connection.sendall(self.handle.token)
        (n,) = LENGTH.unpack(receive(connection, LENGTH.size))
        return receive(connection, n)

    def close(self) -> None:
        """Let go of the writer; what was read stays, and another `update` begins anew."""
        held, self._connection = self._connection, None
        if held is not None:
            held[1].close()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("what is attached cannot be pickled: send its handle, and attach that")


def _why_gone(handle: SharedHandle) -> str:
    if handle.machine != platform.node():
        return (
            f"this {handle.kind} is shared on {handle.machine}, and this is {platform.node()}; "
            "only processes of one machine share. Send what a ChangeFeed says to a Replica instead"
        )
    return (
        f"process {handle.pid} shares this {handle.kind} no more: it has ended, or has deleted it"
    )


def attach(handle: SharedHandle, *, seed: Any = None, timeout: float = WAIT_S) -> Attached:
    """Read what another process of this machine shares, beside whoever writes to it.

    Parameters
    ----------
    handle : SharedHandle
        From `DiffFrameArray.share` or `ReplayBuffer.share`, pickled on its way.
    seed : int or numpy.random.Generator, optional
        Of what a buffer draws here; its writer's draws are not touched.
    timeout : float
        Seconds to wait for the writer at most.

    Returns
    -------
    Attached
        With ``array`` or ``buffer``, and ``update()`` for what has changed since.

    Raises
    ------
    ConnectionError
        If the writer has gone, or runs on another machine.
    TypeError
        If it is no handle.
    TimeoutError
        If the writer does not answer.
    """
    if not isinstance(handle, SharedHandle):
        raise TypeError(
            f"attach takes what share() returned, a SharedHandle, not {type(handle).__name__}"
        )
    return Attached(handle, seed, timeout)
