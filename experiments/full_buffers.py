"""What full replay buffers take, by resident memory: DQN's million beside MeDQN's 100,000.

Each buffer is filled in a process of its own, from real games of a random policy that keeps to an
action for a while; the growth of the process's resident memory is what it takes. Of each game
100,000 transitions are played, which takes most of the time; larger buffers get them repeatedly.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from benchmarks.common import machine, resident_bytes
from benchmarks.frames import KEEP_ACTION
from cleanrl_scripts import medqn_atari
from compressarray import ReplayBuffer

GAMES = ("Qbert", "BattleZone", "DoubleDunk", "NameThisGame", "Phoenix")  # MeDQN's figure
NUM_ENVS = 8  # games at once
PLAYED = 100_000  # transitions


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


@dataclass
class Recording:
    """Steps of several games at once.

    Attributes
    ----------
    frames : (steps + 1, NUM_ENVS, 84, 84) uint8
        What the games returned, the resets' at first.
    steps : list of tuple
        Actions, rewards, terminations and truncations.
    final : dict
        By the step at whose end an episode ended, what ended it.
    """

    frames: np.ndarray
    n_actions: int
    steps: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    final: dict[int, np.ndarray] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        columns = {
            f"steps_{i}": np.stack(each) for i, each in enumerate(zip(*self.steps, strict=True))
        }
        ended = np.array(list(self.final), np.int64)
        final = np.array(list(self.final.values()), np.uint8).reshape(-1, NUM_ENVS, 84, 84)
        with path.open("wb") as file:
            np.savez(file, frames=self.frames, n_actions=self.n_actions, ended=ended, final=final,
                     **columns)  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Recording:
        with np.load(path) as file:
            steps = list(zip(*(file[f"steps_{i}"] for i in range(4)), strict=True))
            final = dict(zip(file["ended"].tolist(), file["final"], strict=True))
            return cls(file["frames"], int(file["n_actions"]), steps, final)


def record(game: str, seed: int, transitions: int) -> Recording:
    """Play real games."""
    args = medqn_atari.Args(env_id=f"ALE/{game}-v5")
    envs = medqn_atari.LearnerSignals(medqn_atari.make_env(args, NUM_ENVS, stack_num=1))
    n_steps, n_actions = transitions // NUM_ENVS, envs.single_action_space.n
    played = Recording(np.empty((n_steps + 1, NUM_ENVS, 84, 84), np.uint8), n_actions)
    rng = np.random.default_rng(seed)
    actions = np.zeros(NUM_ENVS, np.int64)
    played.frames[0] = envs.reset(seed=seed)[0][:, 0]
    for step in range(n_steps):
        new = rng.random(NUM_ENVS) > KEEP_ACTION
        actions[new] = rng.integers(n_actions, size=new.sum())
        obs, *outcome, info = envs.step(actions)
        played.frames[step + 1] = obs[:, 0]
        played.steps.append((actions.copy(), *outcome))
        if (outcome[1] | outcome[2]).any():
            played.final[step] = info["final_obs"][:, 0].copy()
    envs.close()
    return played


def fill(buffer: ReplayBuffer, played: Recording, transitions: int) -> None:
    """Add transitions, those that were played again and again."""
    for number in range(transitions // NUM_ENVS):
        step = number % len(played.steps)
        if number and step == 0:
            buffer.cut()
        after = played.frames[step + 1]
        info, was_reset = {}, np.zeros(NUM_ENVS, bool)
        if step in played.final:
            # a lost life ends an episode, too, and the game goes on with the frame that ended it
            info = {"final_obs": played.final[step]}
            was_reset = (played.final[step] != after).any(axis=(1, 2))
        buffer.add(
            played.frames[step], *played.steps[step], after, info, was_reset=was_reset
        )  # fmt: skip


def measure(wanted: Buffer, recording: Path, seed: int) -> dict:
    """Fill one buffer in this process, with what `record` has played.

    Returns
    -------
    dict
        The buffer's fields, ``nbytes_stored``, and ``rss_growth`` of the process; bytes.
    """
    played = Recording.load(recording)

    def make(transitions: int) -> ReplayBuffer:
        return ReplayBuffer(
            transitions, gym.spaces.Box(0, 255, (84, 84), np.uint8),
            gym.spaces.Discrete(played.n_actions), NUM_ENVS, stack_size=4, padding_type="zero",
            codec=wanted.codec, n_step=3, seed=seed,
        )  # fmt: skip

    fill(make(1000), played, 4000)  # compiles kernels, before anything is counted
    before = resident_bytes()
    buffer = make(wanted.transitions)
    fill(buffer, played, wanted.transitions)
    growth = resident_bytes() - before
    assert len(buffer) == wanted.transitions // NUM_ENVS * NUM_ENVS
    return asdict(wanted) | {"nbytes_stored": buffer.nbytes_stored, "rss_growth": growth}


def measure_all(buffers: list[Buffer], out: Path, seed: int = 1) -> list[dict]:
    """Measure each buffer in a new process; what `out` has of them already is not done again."""
    kept = json.loads(out.read_text()) if out.exists() else {"machine": machine(), "rows": []}
    names = tuple(asdict(buffers[0]))
    done = {tuple(row[name] for name in names) for row in kept["rows"]}
    left = [buffer for buffer in buffers if tuple(asdict(buffer).values()) not in done]
    bar = tqdm(total=len(left), unit="buffer", disable=not sys.stderr.isatty())
    for game in dict.fromkeys(buffer.game for buffer in left):
        of_game = [buffer for buffer in left if buffer.game == game]
        with tempfile.TemporaryDirectory() as folder:
            recording = Path(folder) / "recording.npz"
            record(game, seed, min(PLAYED, max(b.transitions for b in of_game))).save(recording)
            for buffer in of_game:
                with get_context("spawn").Pool(1) as process:
                    kept["rows"].append(process.apply(measure, (buffer, recording, seed)))
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(kept, indent=1) + "\n")
                bar.update()
    bar.close()
    wanted = {tuple(asdict(buffer).values()) for buffer in buffers}
    return [row for row in kept["rows"] if tuple(row[name] for name in names) in wanted]


def published_buffers(million: int, games: tuple[str, ...] = GAMES) -> list[Buffer]:
    """MeDQN's tenth of a million, raw as theirs and in `delta`, and DQN's `million` in `delta`."""
    kinds = [("raw", million // 10), ("delta", million // 10), ("delta", million)]
    return [Buffer(game, *kind) for game in games for kind in kinds]
