"""Joining a cluster, or starting one."""

from __future__ import annotations

import socket
from typing import Any

import ray


def connect(address: str | None = None, **how: Any) -> None:
    """Join a Ray cluster, or start one on this machine.

    Parameters
    ----------
    address : str, optional
        Of a cluster, such as "10.0.0.1:6379", "ray://10.0.0.1:10001" or "auto". Left out: this
        machine's, begun now if there is none.
    **how
        For `ray.init`.

    Raises
    ------
    ConnectionError
        If there is no cluster at the address, or one that this Ray cannot join.
    """
    if ray.is_initialized():
        return
    try:
        _knock(address)
        ray.init(address=address, **how)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConnectionError(
            f"the Ray cluster at address={address!r} cannot be joined: {reason}. Is it up (`ray "
            "status` there), and its Ray and Python of the same versions as here?"
        ) from None


def _knock(address: str | None) -> None:
    """Raise an OSError if nobody listens at a "host:port": Ray would wait for two minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
