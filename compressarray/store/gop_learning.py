"""Reading closed groups for what changes in them, to learn tokens and words from."""

from __future__ import annotations

from typing import Any

from compressarray.codecs.learning import read_changes
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of
from compressarray.store.gop_layout import (
    FRAME_BYTES,
    GOP,
    HEADER_BYTES,
    MAP_FLAG,
    RECORD_KIND,
    ROW_BYTES,
    STACK,
    background_at,
    codebook_at,
    keyframe,
    read_header,
    unroll,
)
from compressarray.store.gop_view import state_at


@kernel
def collect_changes(view: Any, stream: Any, frames: Any, pixel_bytes: Any, keys: Any,
                    words: Any, residuals: Any, n: Any) -> Any:  # fmt: skip
    """Add the changes of a closed stream, as it is coded, to `Changes` from ``n`` on.

    Parameters
    ----------
    stream : address
        With its header, unpacked.
    frames : ndarray, (frames of the group, padded frame) uint8
        Scratch.
    pixel_bytes : int
        0 for no residuals.
    keys, words, residuals : ndarray, (m,) int64, uint64 and uint8

    Returns
    -------
    int
        How many changes there are now.
    """
    state = state_at(view)
    meta = state.meta
    n_bytes, row_bytes = meta[FRAME_BYTES], meta[ROW_BYTES]
    flags, chosen, n_frames, turn = read_header(stream)
    records = stream + HEADER_BYTES
    if flags & MAP_FLAG:
        records += 2 * meta[GOP] * meta[STACK]
    key = keyframe(meta[RECORD_KIND], n_frames)
    background = background_at(state, chosen)
    held, step = base_of(frames), frames.shape[1]
    unroll(
        state, records, n_frames, key, turn, background, codebook_at(state, flags), held, step
    )  # fmt: skip
    for i in range(n_frames):
        new = held + i * step
        old = background if i == key else new - step if i > key else new + step
        n = read_changes(
            old, new, background, n_bytes, row_bytes, pixel_bytes, keys, words, residuals, n
        )
    return n
