"""What samples are made of: numpy arrays, or torch tensors on a device."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.replay.recycling import Recycler

AnyArray = npt.NDArray[Any]


class NumpyOutput:
    """Samples as numpy arrays."""

    device: Any = None

    def __init__(self) -> None:
        self._recycler = Recycler()

    def __reduce__(self) -> Any:
        return type(self), ()

    def base_of(self, view: Any) -> Any:
        """Return the memory that a view is of, or None."""
        return view.base if isinstance(view, np.ndarray) else None

    def memory(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any = None) -> AnyArray:
        """Return an array to decode into: the kept one where it fits, or another."""
        if kept is not None and kept.shape == shape and kept.dtype == dtype:
            return np.asarray(kept)
        return self._recycler.empty(shape, dtype)

    def deliver(self, array: AnyArray, kept: Any = None) -> Any:
        """Hand over what `memory` gave and was filled."""
        del kept
        return array

    def deliver_small(self, array: AnyArray) -> Any:
        """Hand over a fresh array that `memory` did not give."""
        return array

    def deliver_rows(self, array: AnyArray) -> tuple[Any, ...]:
        """Hand over each row of such an array, views of one memory."""
        return tuple(array)


class TorchOutput(NumpyOutput):
    """Samples as tensors.

    On a CPU they share the arrays' memory. For CUDA, arrays lie in pinned memory, which is used
    again as soon as its copy to the device is done.

    Parameters
    ----------
    device : str or torch.device
    """

    def __init__(self, device: Any) -> None:
        import torch  # noqa: TID251 - only who asks for tensors needs it

        super().__init__()
        self._torch = torch
        self.device = torch.device(device)
        self._is_cuda = self.device.type == "cuda"
        if self._is_cuda and self.device.index is None:
            # each thread has a current device of its own
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._pinned: dict[Any, list[Any]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return type(self), (str(self.device),)

    def probe(self) -> None:
        """Raise torch's error where the device cannot be used."""
        self._torch.zeros(1, device=self.device)

    def base_of(self, view: Any) -> Any:
        """Return the memory that a view is of, or None."""
        return view._base if isinstance(view, self._torch.Tensor) else None

    def memory(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any = None) -> AnyArray:
        """Return an array to decode into: pinned for CUDA, else as numpy's."""
        if not self._is_cuda:
            return super().memory(shape, dtype, None if kept is None else kept.numpy())
        with self._lock:
            for place, (tensor, copied) in enumerate(self._pinned.get((shape, dtype.str), [])):
                if copied.query():
                    del self._pinned[shape, dtype.str][place]
                    return self._as_array(tensor)
        kind = self._torch.from_numpy(np.empty(0, dtype)).dtype
        return self._as_array(self._torch.empty(shape, dtype=kind, pin_memory=True))

    def deliver(self, array: AnyArray, kept: Any = None) -> Any:
        """Hand over a tensor: the array's memory itself, or its copy on the device."""
        tensor = self._torch.from_numpy(array)
        if not self._is_cuda:
            return tensor if self.device.type == "cpu" else tensor.to(self.device)
        if kept is not None and kept.shape == tensor.shape and kept.dtype == tensor.dtype:
            result = kept.copy_(tensor, non_blocking=True)
        else:
            result = tensor.to(self.device, non_blocking=True)
        copied: Any = self._torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(self._torch.cuda.current_stream(self.device))
        with self._lock:
            self._pinned.setdefault((array.shape, array.dtype.str), []).append((tensor, copied))
        return result

    def deliver_small(self, array: AnyArray) -> Any:
        """Hand over a tensor of a fresh array that `memory` did not give."""
        tensor = self._torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def deliver_rows(self, array: AnyArray) -> tuple[Any, ...]:
        """Hand over each row of such an array, views of one memory."""
        return tuple(self.deliver_small(array).unbind())

    @staticmethod
    def _as_array(tensor: Any) -> AnyArray:
        # The array keeps the tensor alive, and with it the pinned memory.
        return np.asarray(tensor.numpy())


def make_output(device: Any) -> NumpyOutput:
    """Return the output for a device; None stands for numpy.

    Raises
    ------
    ValueError
        If torch has no such device, or cannot use it here.
    """
    if device is None:
        return NumpyOutput()
    try:
        output = TorchOutput(device)
        output.probe()
    except (AssertionError, RuntimeError, TypeError) as error:  # torch's words, by its build
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device={device!r} cannot be used here: {reason}. Leave it out for numpy arrays, or "
            "give a device that torch has, such as 'cpu'"
        ) from None
    return output


def worker_seed() -> int | None:
    """What torch's DataLoader seeds this process with, if that is one of its workers."""
    data = sys.modules.get("torch.utils.data")  # who has not imported it is none
    info = None if data is None else data.get_worker_info()
    return None if info is None else int(info.seed)


def deliver_all(output: NumpyOutput, fields: dict[str, AnyArray]) -> dict[str, Any]:
    """Deliver what a user keeps beside transitions."""
    return {name: output.deliver_small(values) for name, values in fields.items()}
