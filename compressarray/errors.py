"""The library's own errors: each derives from the builtin that numpy would raise in its place."""

from __future__ import annotations


class FrameEvictedError(IndexError):
    """A frame index names a frame that is not held: evicted, retired, or not appended yet."""


class StaleStreamError(IndexError):
    """Frame indices of an earlier stream were used after numbering started over."""


class CorruptFrameError(ValueError):
    """What is stored, or was pickled, is nothing that the library writes."""


class DeviceError(RuntimeError):
    """A GPU cannot do what it is asked for; what is in the CPU's memory is as it was."""
