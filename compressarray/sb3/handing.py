"""Arguments of ours that a constructor of the host's does not hand on to the next class."""

from __future__ import annotations

from typing import Any

OURS = (
    "codec",
    "compression_method",
    "compression_kwargs",
    "decompression_kwargs",
    "dtypes",
    "normalize_images",
    "output_dtype",
)


class Takes:
    """The first base of such a class: it takes our arguments from among the host's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ours = {name: kwargs.pop(name) for name in OURS if name in kwargs}
        super().__init__(*args, **kwargs)


class Gives:
    """The base between the host's class and ours: it gives ours the arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, **vars(self).pop("_ours"))
