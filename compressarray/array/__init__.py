"""`DiffFrameArray`, the compressed array.

==================== ==========================================================================
module               knows
==================== ==========================================================================
`container`          the class: its options, keys, views, copies, and the ring
`ndarray`            methods and operators that follow from a shape, a dtype and keys
`dispatch`           what numpy's functions and ufuncs make of it
`reductions`         sums, means, extrema of blocks of frames, put together
`blockwise`          computing and writing a block of frames at a time
`leads`              where leading axes lie, in views
`flat`               the elements in C order
`frames`             what an array and its views share: store, ring, and how a frame looks
==================== ==========================================================================
"""

from compressarray.array.container import DiffFrameArray

__all__ = ["DiffFrameArray"]
