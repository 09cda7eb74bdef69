"""What full replay buffers take, by resident memory: DQN's million beside MeDQN's 100,000.

Each buffer is filled in a process of its own, from real games that a random policy plays which
keeps to an action for a while; the growth of the process's resident memory is what it takes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.common import machine, resident_bytes
from benchmarks.frames import KEEP_ACTION
from cleanrl_scripts import medqn_atari
from compressarray import ReplayBuffer

GAMES = ("Qbert", "BattleZone", "DoubleDunk", "NameThisGame", "Phoenix")  # MeDQN's figure
NUM_ENVS = 8  # games at once: with one, most of the time is spent on waiting for it
WARM_UP_TRANSITIONS = 4000


@dataclass(frozen=True)
class Buffer:
    """A replay buffer to fill.

    Attributes
    ----------
    game : str
    codec : str
        How frames are stored; "raw" is each frame once, as MeDQN's code keeps them.
    transitions : int
        Capacity, and what is added.
    """

    game: str
    codec: str
    transitions: int


def play(buffer: ReplayBuffer, envs, seed: int, transitions: int) -> None:
    """Add the transitions of a random policy's games."""
    rng = np.random.default_rng(seed)
    actions = np.zeros(NUM_ENVS, np.int64)
    obs, _ = envs.reset(seed=seed)
    for _ in range(transitions // NUM_ENVS):
        new = rng.random(NUM_ENVS) > KEEP_ACTION
        actions[new] = rng.integers(envs.single_action_space.n, size=new.sum())
        next_obs, *outcome = envs.step(actions)
        buffer.add(obs, actions, *outcome[:3], next_obs, outcome[3])
        obs = next_obs


def measure(wanted: Buffer, seed: int) -> dict:
    """Fill one buffer in this process.

    Returns
    -------
    dict
        The buffer's fields, ``nbytes_stored``, and ``rss_growth`` of the process; bytes.
    """
    args = medqn_atari.Args(env_id=f"ALE/{wanted.game}-v5")
    envs = medqn_atari.LearnerSignals(medqn_atari.make_env(args, NUM_ENVS))

    def make(transitions: int) -> ReplayBuffer:
        return ReplayBuffer(
            transitions, envs.single_observation_space, envs.single_action_space, NUM_ENVS,
            codec=wanted.codec, n_step=3, seed=seed,
        )  # fmt: skip

    # Kernels are compiled and the games' memory is there before anything is counted.
    play(make(1000), envs, seed + 1, WARM_UP_TRANSITIONS)
    before = resident_bytes()
    buffer = make(wanted.transitions)
    play(buffer, envs, seed, wanted.transitions)
    growth = resident_bytes() - before
    envs.close()
    assert len(buffer) == wanted.transitions // NUM_ENVS * NUM_ENVS
    return asdict(wanted) | {"nbytes_stored": buffer.nbytes_stored, "rss_growth": growth}


def measure_all(buffers: list[Buffer], out: Path, seed: int = 1) -> list[dict]:
    """Measure each buffer in a new process; what `out` has of them already is not done again."""
    kept = json.loads(out.read_text()) if out.exists() else {"machine": machine(), "rows": []}
    done = {tuple(row[name] for name in ("game", "codec", "transitions")) for row in kept["rows"]}
    left = [buffer for buffer in buffers if tuple(asdict(buffer).values()) not in done]
    for buffer in tqdm(left, unit="buffer", disable=not sys.stderr.isatty()):
        with get_context("spawn").Pool(1) as process:
            kept["rows"].append(process.apply(measure, (buffer, seed)))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(kept, indent=1) + "\n")
    wanted = {tuple(asdict(buffer).values()) for buffer in buffers}
    names = ("game", "codec", "transitions")
    return [row for row in kept["rows"] if tuple(row[name] for name in names) in wanted]


def published_buffers(million: int, games: tuple[str, ...] = GAMES) -> list[Buffer]:
    """MeDQN's tenth of a million, raw as theirs and in `delta`, and DQN's `million` in `delta`."""
    kinds = [("raw", million // 10), ("delta", million // 10), ("delta", million)]
    return [Buffer(game, *kind) for kind in kinds for game in games]
