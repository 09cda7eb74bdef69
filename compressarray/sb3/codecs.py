"""``codec=``, and what sb3-extra-buffers' arguments mean here."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

SHORTHAND = re.compile(r"([a-z][a-z0-9-]*?)(?:/?(-?\d+))?")


def choose_codec(
    codec: Any,
    compression_method: str | None,
    compression_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Return the codec that the arguments of a buffer ask for.

    Parameters
    ----------
    codec : str or object
        What `compressarray.DiffFrameArray` takes.
    compression_method : str, optional
        A name of sb3-extra-buffers, with or without a level: ``gzip5``, ``igzip3``, ``zstd-5``
        (level -5), ``lz4-frame/1``, ``none``, ``rle-jit``. It goes before `codec`.
    compression_kwargs : mapping, optional
        Of these ``compresslevel`` counts.

    Raises
    ------
    ValueError
        If the method is not one of sb3-extra-buffers'.
    """
    if compression_method is None:
        return codec
    name, level = _name_and_level(compression_method)
    if level is None and compression_kwargs and "compresslevel" in compression_kwargs:
        level = int(compression_kwargs["compresslevel"])
    if name == "none":
        return "raw"
    if name in ("rle", "rle-jit", "rle-old"):
        warnings.warn(
            f'compression_method="{compression_method}" is answered by codec="delta", which is '
            'smaller and as exact; say codec="delta" to be rid of this line',
            stacklevel=4,
        )
        return "delta"
    if name == "igzip" and find_spec("isal") is None:
        warnings.warn("igzip needs the package isal; gzip is used: pip install isal", stacklevel=4)
        name = "gzip"
    return _FOREIGN[name](level)


def _name_and_level(method: str) -> tuple[str, int | None]:
    known = ("none", "rle", "rle-jit", "rle-old", *_FOREIGN)
    if method in known:
        return method, None
    found = SHORTHAND.fullmatch(method)
    # "zstd-5" is level -5 of zstd, as in sb3-extra-buffers
    if found and found[1] in _FOREIGN and found[2] is not None:
        return found[1], int(found[2])
    raise ValueError(
        f"compression_method={method!r} is none of {', '.join(known)}, with or without a level "
        '("zstd-5", "lz4-frame/1"); or give codec= what DiffFrameArray takes'
    )


def _gzip(level: int | None) -> Any:
    return {"id": "gzip", "level": 1 if level is None else level}


def _igzip(level: int | None) -> Any:
    # imported here: numcodecs and isal are needed only by who asks for them
    from compressarray.sb3.igzip import Igzip

    return Igzip(1 if level is None else level)


def _zstd(level: int | None) -> Any:
    return {"id": "zstd", "level": 1 if level is None else level}


def _lz4(level: int | None) -> Any:
    # numcodecs has the fast variant only; a negative level accelerates it, as in LZ4 itself
    return {"id": "lz4", "acceleration": -level if level is not None and level < 0 else 1}


_FOREIGN = {"gzip": _gzip, "igzip": _igzip, "zstd": _zstd, "lz4-frame": _lz4, "lz4-block": _lz4}


def check_foreign(dtypes: Any, output_dtype: str) -> None:
    """Look at the arguments of sb3-extra-buffers that change nothing here.

    Raises
    ------
    ValueError
        If the samples were wanted as floats.
    TypeError
        If `dtypes` is no mapping.
    """
    if output_dtype != "raw":
        raise ValueError(
            f"output_dtype={output_dtype!r} is not offered, only 'raw', the observation space's "
            "own dtype; Stable-Baselines3 makes floats of images itself"
        )
    if dtypes is not None and not isinstance(dtypes, Mapping):
        raise TypeError(
            f"dtypes={dtypes!r} is no dict; leave it out, the dtype is the observation space's"
        )
