"""What samples are made of: numpy arrays, or torch tensors on a device."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import DeviceError
from compressarray.readers.cuda.device import Device
from compressarray.readers.cuda.devices import device_of
from compressarray.replay.recycling import Recycler

AnyArray = npt.NDArray[Any]

_ALIGNMENT = 16  # of arrays that are copied in one piece


class NumpyOutput:
    """Samples as numpy arrays.

    Attributes
    ----------
    device : torch.device or None
    decodes_on : str
        Where pixels are decoded: ``"cpu"`` or ``"device"``.
    """

    device: Any = None
    decodes_on = "cpu"
    chosen_decode_on: str | None = None  # what the user said

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

    def deliver_together(self, arrays: Sequence[AnyArray]) -> list[Any]:
        """Hand over fresh arrays that `memory` did not give, at once."""
        return list(arrays)

    # What is drawn is delivered in these steps; see `Delivery`.

    def begin(self, readers: Sequence[Sequence[Any]]) -> NumpyOutput:
        """Begin a batch, of which these readers will read the pixels; what it is delivered with.

        No write of the buffer comes between what chose the transitions and this.
        """
        del readers
        return self

    def read_there(self, readers: Sequence[Any], shape: tuple[int, ...], kept: Any) -> Any:
        """Frames that were decoded where they are delivered, or None."""
        del readers, shape, kept

    def finish(self) -> None:
        """Say that nothing more is delivered of the batch."""

    def arrive(self) -> None:
        """Let whoever called for the batch use it, on whatever he works with."""

    def nbytes_on_device(self) -> int:
        """Bytes of another memory than the CPU's that are held to decode there."""
        return 0


class TorchOutput(NumpyOutput):
    """Samples as tensors. On a CPU they share the arrays' memory.

    Parameters
    ----------
    device : str or torch.device
    """

    def __init__(self, device: Any) -> None:
        import torch  # noqa: TID251 - only who asks for tensors needs it

        super().__init__()
        self._torch = torch
        self.device = torch.device(device)

    def __reduce__(self) -> Any:
        return type(self), (str(self.device),)

    def probe(self) -> None:
        """Raise torch's error where the device cannot be used."""
        self._torch.zeros(1, device=self.device)

    def base_of(self, view: Any) -> Any:
        """Return the memory that a view is of, or None."""
        return view._base if isinstance(view, self._torch.Tensor) else None

    def memory(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any = None) -> AnyArray:
        """Return an array to decode into, as numpy's."""
        is_kept = kept is not None and self.device.type == "cpu"
        return super().memory(shape, dtype, kept.numpy() if is_kept else None)

    def deliver(self, array: AnyArray, kept: Any = None) -> Any:
        """Hand over a tensor: the array's memory itself, or its copy on the device."""
        del kept
        tensor = self._torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def deliver_together(self, arrays: Sequence[AnyArray]) -> list[Any]:
        """Hand over tensors of fresh arrays that `memory` did not give."""
        return [self.deliver(array) for array in arrays]


def make_output(device: Any, decode_on: str | None = None) -> NumpyOutput:
    """Return the output for a device; None stands for numpy.

    Raises
    ------
    ValueError
        If torch has no such device, or cannot use it here, or cannot decode on it.
    """
    if decode_on not in (None, "cpu", "device"):
        raise ValueError(f"decode_on={decode_on!r} must be 'cpu', 'device' or None")
    output = NumpyOutput() if device is None else _output_of(device, decode_on)
    if decode_on == "device" and not isinstance(output, DeviceOutput):
        raise ValueError(
            f"decode_on='device' and device={device!r}: only GPUs of NVIDIA's decode; give "
            "device='cuda', or leave decode_on out"
        )
    return output


def _output_of(device: Any, decode_on: str | None) -> NumpyOutput:
    try:
        output = TorchOutput(device)
        output.probe()
        if output.device.type != "cuda":
            return output
        return DeviceOutput(device_of(output.device).name, decode_on)
    except (AssertionError, RuntimeError, TypeError) as error:  # torch's words, by its build
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device={device!r} cannot be used here: {reason}. Leave it out for numpy arrays, or "
            "give a device that torch has, such as 'cpu'"
        ) from None


class DeviceOutput(NumpyOutput):
    """Samples as tensors of a GPU, decoded there where that can be.

    Parameters
    ----------
    device : str
    decode_on : str, optional
        ``"cpu"``: decode here, and copy.

    Notes
    -----
    What is asked of the GPU goes on beside what the learner does there, in an order of its own; a
    batch is the learner's from `arrive` on.
    """

    def __init__(self, device: str, decode_on: str | None) -> None:
        super().__init__()
        self._name = device
        self.chosen_decode_on = decode_on
        self._device: Device | None = None
        self.decodes_on = decode_on or "device"
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()

    def __reduce__(self) -> Any:
        return type(self), (self._name, self.chosen_decode_on)

    @property
    def device(self) -> Any:
        """The torch.device."""
        import torch  # noqa: TID251 - who has one of its devices has it

        return torch.device(self._name)

    @property
    def there(self) -> Device:
        """The device itself."""
        if self._device is None:
            self._device = device_of(self._name)
        return self._device

    def base_of(self, view: Any) -> Any:
        """Return the memory that a view is of, or None."""
        return getattr(view, "_base", None)

    def begin(self, readers: Sequence[Sequence[Any]]) -> NumpyOutput:
        """Find all frames in the replicas of their arrays, which are then in step."""
        found: dict[int, Any] = {}
        if self.decodes_on == "device":
            try:
                for reader in (each for of_each in readers for each in of_each):
                    located = reader.locate_there(self.there)
                    if located is not None:
                        found[id(reader)] = located
                        self._holders.add(located.holder)
            except DeviceError as error:
                self.give_up(error)
                found.clear()
        return Delivery(self, self.there, found)

    def give_up(self, error: DeviceError) -> None:
        """Decode on the CPU from now on."""
        if self.decodes_on == "device":
            self.decodes_on = "cpu"
            for holder in self._holders:
                holder.leave(self.there)
            warnings.warn(
                f"frames are decoded on the CPU from now on, and copied to {self._name}: {error}. "
                "decode_on='cpu' does so from the beginning",
                stacklevel=2,
            )

    def nbytes_on_device(self) -> int:
        """See `NumpyOutput`."""
        return sum(holder.nbytes(self.there) for holder in self._holders)


class Delivery(NumpyOutput):
    """One batch on its way to a device."""

    def __init__(self, output: DeviceOutput, device: Device, located: dict[int, Any]) -> None:
        self._output = output
        self._device = device
        self._located = located
        self._delivered: list[Any] = []
        self._mark: Any = None

    def memory(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: Any = None) -> AnyArray:
        """Return an array that is copied fast, to decode into."""
        del kept
        with self._device.work():
            return self._device.host(shape, dtype)

    def deliver(self, array: AnyArray, kept: Any = None) -> Any:
        """Copy what `memory` gave and was filled."""
        with self._device.work():
            there = self._device.copied(array, kept)
        self._delivered.append(there)
        return there

    def deliver_together(self, arrays: Sequence[AnyArray]) -> list[Any]:
        """Copy arrays in one piece."""
        ends = np.cumsum([-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays])
        starts = [0, *ends[:-1].tolist()]
        device = self._device
        with device.work():
            staged = device.stage(int(ends[-1]))
            for start, array in zip(starts, arrays, strict=True):
                flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                staged.host[start : start + array.nbytes] = flat
            device.send(staged)
            there = device.tensor_of(staged.memory)
        self._delivered.append(there)
        return [
            device.view(there[start : start + array.nbytes], array.shape, array.dtype)
            for start, array in zip(starts, arrays, strict=True)
        ]

    def read_there(self, readers: Sequence[Any], shape: tuple[int, ...], kept: Any) -> Any:
        """Decode on the device what was found there."""
        if not all(id(reader) in self._located for reader in readers):
            return None
        found = [self._located[id(reader)] for reader in readers]
        first = readers[0]
        try:
            with self._device.work():
                frames = self._device.frames(shape, first.layout.frame_dtype, kept)
                if len(readers) == 1:
                    found[0].decode(frames)
                else:
                    self._decode_each(readers, found, frames)
        except DeviceError as error:
            self._output.give_up(error)
            self._located.clear()  # the memory of replicas is room for the batch
            return None
        self._delivered.append(frames)
        return frames

    @staticmethod
    def _decode_each(readers: Sequence[Any], found: Sequence[Any], frames: Any) -> None:
        in_parts = readers[0].in_parts
        begin = 0
        for reader, located in zip(readers, found, strict=True):
            end = begin + reader.indices.shape[int(in_parts)]
            if in_parts:
                for part in range(2):
                    located.part(part, 2).decode(frames[part, begin:end])
            else:
                located.decode(frames[begin:end])
            begin = end

    def finish(self) -> None:
        """See `NumpyOutput`."""
        self._mark = self._device.mark()

    def arrive(self) -> None:
        """See `NumpyOutput`."""
        self._device.arrive(self._mark, self._delivered)


def worker_seed() -> int | None:
    """What torch's DataLoader seeds this process with, if that is one of its workers."""
    data = sys.modules.get("torch.utils.data")  # who has not imported it is none
    info = None if data is None else data.get_worker_info()
    return None if info is None else int(info.seed)
