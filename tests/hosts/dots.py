"""A small environment of pixels, under a name that RL Zoo can be told."""

from __future__ import annotations

import gymnasium

gymnasium.register("Dot-v0", "tests.sb3.worlds:Dot")
