"""Arrays and buffers that other processes of this machine read: what is at the writer's end.

A thread waits for readers at a socket, and one for each reader answers with what has changed since
that one last asked (`compressarray.feeding`). A reader asks by sending the handle's token; what
comes back is a length in eight bytes and a message, or `ERROR` and a text. `compressarray.attached`
is the other end.

The socket has no file: on Linux its name is an abstract one, elsewhere it is a port of this
machine. So nothing is left behind when all processes are killed.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import platform
import secrets
import socket
import socketserver
import struct
import sys
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

from compressarray.feeding import ChangeFeed, Source

ERROR = 255  # the first byte of an answer that is no message
TOKEN_BYTES = 16
LENGTH = struct.Struct("<Q")
HAS_ABSTRACT_NAMES = sys.platform == "linux"
_POLL_S = 0.2  # how long a thread takes at most to notice that what it shared is gone


@dataclass(frozen=True)
class SharedHandle:
    """Where an array or a buffer is shared; small, and can be pickled.

    Attributes
    ----------
    kind : str
        The class of what is shared, ``"DiffFrameArray"`` or ``"ReplayBuffer"``.
    pid : int
        Of the process that writes to it.
    machine : str
        The name of the machine that it runs on.
    """

    kind: str
    pid: int
    machine: str
    address: Any = field(repr=False)
    token: bytes = field(repr=False)


class _Answers(socketserver.BaseRequestHandler):
    """Says to one reader what has changed, each time that it asks."""

    server: _Server

    def handle(self) -> None:
        connection: socket.socket = self.request
        self.server.connections.add(connection)
        feed = None
        with contextlib.suppress(OSError):  # the reader is gone: nobody to tell
            while hmac.compare_digest(receive(connection, TOKEN_BYTES), self.server.token):
                if feed is None:
                    source = self.server.source()
                    if source is None:
                        return
                    feed = ChangeFeed(source)
                    del source
                send(connection, _answer(feed))


def _answer(feed: ChangeFeed) -> bytes:
    try:
        return feed.read()
    except Exception as error:  # the reader is told, and raises it
        return bytes([ERROR]) + f"{type(error).__name__}: {error}".encode()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Waits for readers of one source, as long as there is one."""

    daemon_threads = True
    block_on_close = False
    if HAS_ABSTRACT_NAMES:
        address_family = socket.AF_UNIX

    def __init__(self, source: Source) -> None:
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.source = weakref.ref(source)
        self.connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.is_closed = False
        place: Any = ("127.0.0.1", 0)
        if HAS_ABSTRACT_NAMES:
            place = f"\0compressarray-{os.getpid()}-{secrets.token_hex(8)}"
        super().__init__(place, _Answers)

    def service_actions(self) -> None:
        """Stop, in the thread that waits, once what was shared is gone."""
        if self.source() is None and not self.is_closed:
            self.is_closed = True
            self.server_close()
            with _lock:
                for key in [key for key, known in _shared.items() if known[1] is self]:
                    del _shared[key]
            threading.Thread(target=self.shutdown, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a reader go that asked for nothing that there is; others go on."""

    def forget(self) -> None:
        """Close, in a forked child, what its parent answers at."""
        self.socket.close()
        for connection in list(self.connections):
            connection.close()


_lock = threading.Lock()
_shared: dict[int, tuple[weakref.ref[Any], _Server, SharedHandle]] = {}  # by id of what is shared


def share(source: Any) -> SharedHandle:
    """Begin to share a source, unless that was done before."""
    source._begin_feed()
    with _lock:
        known = _shared.get(id(source))
        if known is not None and known[0]() is source:
            return known[2]
        server = _Server(source)
        handle = SharedHandle(
            source._kind, os.getpid(), platform.node(), server.server_address, server.token
        )
        threading.Thread(
            target=server.serve_forever,
            args=(_POLL_S,),
            name=f"readers of a shared {source._kind}",
            daemon=True,
        ).start()
        _shared[id(source)] = weakref.ref(source), server, handle
        return handle


def send(connection: socket.socket, answer: bytes) -> None:
    """Send an answer after its length."""
    connection.sendall(LENGTH.pack(len(answer)))
    connection.sendall(answer)


def receive(connection: socket.socket, n: int) -> bytearray:
    """Wait for ``n`` bytes; ConnectionError if the other end is gone before they came."""
    data = bytearray(n)
    rest = memoryview(data)
    while len(rest):
        n_received = connection.recv_into(rest)
        if not n_received:
            raise ConnectionError("the other end is gone")
        rest = rest[n_received:]
    return data


def _after_fork_in_child() -> None:
    # The threads are the parent's. Its socket must not seem alive because this child has it, too.
    global _lock
    _lock = threading.Lock()
    for _, server, _ in _shared.values():
        server.forget()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
