"""Joining a cluster, or starting one."""

from __future__ import annotations

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
    how.setdefault("log_to_driver", True)
    try:
        ray.init(address=address, **how)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConnectionError(
            f"the Ray cluster at address={address!r} cannot be joined: {reason}. Is it up (`ray "
            "status` there), and its Ray and Python of the same versions as here?"
        ) from None
