"""Entropy coding of whole GOPs: Zstandard with a dictionary trained on the array's first ones."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import zstandard

DICTIONARY_BYTES = 16 * 1024


class Packer:
    """Packs byte strings that resemble each other.

    Frames are written without magic number, checksum, size or dictionary id: nine bytes that a
    GOP of a few hundred would carry for nothing.

    Parameters
    ----------
    level : int
        Of Zstandard, 1 to 22.
    """

    def __init__(self, level: int = 19) -> None:
        self.level = level
        self._lock = threading.Lock()
        self._use(b"")

    def _use(self, dictionary: bytes) -> None:
        self._dictionary = dictionary
        data = (
            zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_AUTO)
            if dictionary
            else None
        )
        # The window is no wider than a group: the tables of level 19 would else take megabytes.
        self._parameters = zstandard.ZstdCompressionParameters.from_level(
            self.level,
            source_size=4096,
            dict_size=len(dictionary),
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        self._compressor = zstandard.ZstdCompressor(
            dict_data=data, compression_params=self._parameters
        )
        self._decompressor = zstandard.ZstdDecompressor(
            dict_data=data, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        )

    def train(self, samples: list[bytes]) -> None:
        """Train the dictionary. What was packed before can no longer be unpacked."""
        total = sum(map(len, samples))
        try:
            trained = zstandard.train_dictionary(
                min(DICTIONARY_BYTES, max(256, total // 4)), samples, level=self.level
            )
        except zstandard.ZstdError:
            return  # too little, or too much alike, to learn from
        with self._lock:
            self._use(trained.as_bytes())

    @property
    def trained(self) -> bool:
        """Whether there is a dictionary."""
        return bool(self._dictionary)

    @property
    def nbytes(self) -> int:
        """Bytes held: contexts, and the dictionary in its three forms."""
        held = self._compressor.memory_size() + self._decompressor.memory_size()
        return int(held) + 3 * len(self._dictionary)

    def pack(self, data: npt.NDArray[np.uint8]) -> bytes:
        """Compress."""
        with self._lock:
            return self._compressor.compress(data)

    def unpack(self, data: npt.NDArray[np.uint8], n_bytes: int) -> bytes:
        """Decompress to ``n_bytes``."""
        with self._lock:
            return self._decompressor.decompress(data, max_output_size=n_bytes)

    def __getstate__(self) -> dict[str, object]:
        return {"level": self.level, "dictionary": self._dictionary}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(int(str(state["level"])))  # type: ignore[misc]
        dictionary = state["dictionary"]
        assert isinstance(dictionary, bytes)
        self._use(dictionary)
