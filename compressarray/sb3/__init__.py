"""Buffers for Stable-Baselines3 that store each frame once, compressed, and give what its own give.

Pass one as ``replay_buffer_class`` or ``rollout_buffer_class``. The same seed draws the same
samples as Stable-Baselines3's class, bit for bit, so a training ends with the same weights.

=============== ================================================================================
module          knows
=============== ================================================================================
`planes`        how an observation splits into frames
`rows`          slots of observation and next observation, as indices into a ring of frames
`columns`       what stands where Stable-Baselines3 has an ndarray of images
`codecs`        ``codec=``, and what sb3-extra-buffers' arguments mean
`replay`        the replay buffers
`prioritized`   the one that draws in proportion to priorities
`her`           the one with hindsight goals
`rollout`       the rollout buffers
`contrib`       sb3-contrib's rollout buffers; imported by who asks for them
`steps`         what a write changes in place, so that it can be taken back
`handing`       our arguments, past constructors of the host's that know none of them
`tools`         compiling before a fork; taking over a dense buffer
=============== ================================================================================
"""

from compressarray.sb3.host import check_version

check_version()

from compressarray.sb3.her import (  # noqa: E402 - an old version is named before it fails
    CompressedHerReplayBuffer,
)
from compressarray.sb3.prioritized import (  # noqa: E402
    CompressedPrioritizedReplayBuffer,
    PrioritizedReplayBufferSamples,
)
from compressarray.sb3.replay import (  # noqa: E402
    CompressedDictReplayBuffer,
    CompressedNStepReplayBuffer,
    CompressedReplayBuffer,
)
from compressarray.sb3.rollout import (  # noqa: E402
    CompressedDictRolloutBuffer,
    CompressedRolloutBuffer,
)
from compressarray.sb3.tools import compile_kernels, compressed  # noqa: E402

__all__ = [
    "CompressedDictReplayBuffer",
    "CompressedDictRolloutBuffer",
    "CompressedHerReplayBuffer",
    "CompressedNStepReplayBuffer",
    "CompressedPrioritizedReplayBuffer",
    "CompressedReplayBuffer",
    "CompressedRolloutBuffer",
    "PrioritizedReplayBufferSamples",
    "compile_kernels",
    "compressed",
]
