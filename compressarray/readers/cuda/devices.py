"""Devices by their names."""

from __future__ import annotations

from typing import Any

from compressarray.errors import DeviceError
from compressarray.readers.cuda.device import Device


def device_of(device: Any) -> Device:
    """The GPU of a name of torch's, such as ``"cuda"``.

    Raises
    ------
    ValueError
        If there is no GPU of that name that can be used.
    """
    try:
        from compressarray.readers.cuda.gpu import gpu_of

        return gpu_of(device)
    except DeviceError:
        raise
    except ImportError as error:
        raise ValueError(f"device={device!r} needs PyTorch: {error}") from None
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # torch's words
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device={device!r} cannot be used here: {reason}. Leave it out for numpy arrays"
        ) from None
