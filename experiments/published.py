"""Published numbers that ours stand beside, and the formula for memory that some of them are from.

"The paper" is Grossman and Plancher, "Differentially Encoded Observation Spaces for Perceptive
Reinforcement Learning", arXiv 2310.01767.
"""

from __future__ import annotations

from typing import NamedTuple

SIDE = 84  # I, the height and width of an image
MIB = 2**20  # the MB of Table II: 1,024 stacks of 28,224 bytes are 27.6 of them
GB = 1e9  # that of Table I: a million stacks of 63,504 bytes are 63.5 of them


def equation_3(n_stacks: float, stack_size: int, changed_pixels: float) -> float:
    """Return the bytes of the paper's compressor: I^2 d + 8 d (f - 1) + 4 N + 4 |D| f.

    Parameters
    ----------
    n_stacks : float
        |D|, the observations in the buffer.
    stack_size : int
        f, the frames of a stack; d is |D| / f, the frames that are stored raw.
    changed_pixels : float
        N, the pixels stored of all other frames: in the paper the largest number during training.
    """
    d = n_stacks / stack_size
    raw, pointers = SIDE**2 * d, 8 * d * (stack_size - 1)
    return raw + pointers + 4 * changed_pixels + 4 * n_stacks * stack_size


def equation_4(n_stacks: float, stack_size: int, changed_pixels: float) -> float:
    """Return how many times smaller that is than stacks of gray images."""
    stacks = SIDE**2 * n_stacks * stack_size
    return stacks / equation_3(n_stacks, stack_size, changed_pixels)


def factor_of_share(stack_size: int, share: float) -> float:
    """Return equation 4 where `share` of the pixels of all frames that are not raw changed.

    The paper's equation 5 means the same and, as printed, leaves the indices out (f in the
    denominator).
    """
    frames = (stack_size - 1) / stack_size  # not raw, for each stack
    return equation_4(1, stack_size, share * SIDE**2 * frames)


class Atari(NamedTuple):
    """A row of Table II."""

    fps_base: float
    fps: float
    mb: float
    factor: float


TABLE_2 = {
    "PPO": {
        "Asteroids": Atari(1605, 1535, 2.6, 10.8),
        "BeamRider": Atari(1339, 1267, 7.6, 3.6),
        "Breakout": Atari(1437, 1383, 2.0, 14.2),
        "Enduro": Atari(1117, 1062, 3.5, 7.9),
        "MsPacman": Atari(1432, 1389, 2.3, 12.1),
        "Pong": Atari(1582, 1512, 2.0, 13.9),
        "Qbert": Atari(1507, 1452, 3.0, 9.1),
        "RoadRunner": Atari(1347, 1267, 3.0, 9.0),
        "Seaquest": Atari(1466, 1371, 2.9, 9.6),
        "SpaceInvaders": Atari(1468, 1395, 2.4, 11.3),
        "average": Atari(1430, 1363, 3.1, 8.9),
    },
    "QR-DQN": {
        "Asteroids": Atari(897, 616, 265, 10.2),
        "BeamRider": Atari(792, 547, 552, 4.9),
        "Breakout": Atari(833, 587, 190, 14.2),
        "Enduro": Atari(722, 536, 306, 8.8),
        "MsPacman": Atari(839, 597, 219, 12.3),
        "Pong": Atari(881, 627, 192, 14.0),
        "Qbert": Atari(849, 608, 213, 12.7),
        "RoadRunner": Atari(808, 576, 290, 9.3),
        "Seaquest": Atari(732, 484, 278, 9.7),
        "SpaceInvaders": Atari(861, 607, 227, 11.9),
        "average": Atari(821, 579, 273, 9.9),
    },
}
TABLE_2_BASE_MB = {"PPO": 27.6, "QR-DQN": 2694}
TABLE_2_STACKS = {"PPO": 1024, "QR-DQN": 100_000}
GAMES = tuple(game for game in TABLE_2["PPO"] if game != "average")
ATARI_STEPS = 10_000_000


class Control(NamedTuple):
    """A row of Table I."""

    fps_base: float
    fps: float
    gb_base: float
    gb: float
    factor: float


TABLE_1 = {
    "Half": {
        "walker_walk": Control(119, 142, 63.5, 7.1, 8.9),
        "quadruped_walk": Control(184, 243, 63.6, 7.1, 9.0),
        "average": Control(152, 193, 63.6, 7.1, 9.0),
    },
    "Full": {
        "walker_walk": Control(119, 73, 63.5, 3.8, 16.7),
        "quadruped_walk": Control(184, 135, 63.6, 4.1, 15.5),
        "average": Control(152, 104, 63.6, 4.0, 15.9),
    },
}
TASKS = ("walker_walk", "quadruped_walk")
TABLE_1_STACKS = 1_000_000
RGB_STACK_BYTES = 9 * SIDE**2

# MeDQN's figure, computed from the files it publishes (qlan3/MeDQN: results/*.csv): mean over 5
# seeds of the mean of the last five evaluations up to 50 million frames, and its standard error
# where it is known.
MEDQN_RETURNS = {
    "Qbert": {"MeDQN(R)": (14128, 715), "DQN": (11920, 831), "DQN small": (10709, 1509)},
    "BattleZone": {"MeDQN(R)": (22272, 2545), "DQN": (25104, 663), "DQN small": (19584, 1048)},
    "DoubleDunk": {"MeDQN(R)": (-1.2, None), "DQN": (-1.6, None), "DQN small": (-1.4, None)},
    "NameThisGame": {"MeDQN(R)": (9144, 1281), "DQN": (4634, 499), "DQN small": (2976, 659)},
    "Phoenix": {"MeDQN(R)": (4929, 59), "DQN": (4353, 136), "DQN small": (3655, 388)},
}
MEDQN_STEPS = 12_500_000
