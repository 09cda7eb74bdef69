"""DrQ-v2 with its published replay, episodes in files: the base of the compression paper's speeds.

The flags are those of `cleanrl_scripts/drqv2_dmc.py`, whose networks, updates and loop these are;
only the replay is that of `facebookresearch/drqv2: replay_buffer.py`: each finished episode is a
compressed file of stacks; four processes each read a quarter of the episodes, keep them in memory,
look for new ones every 1,000 samples, and make batches from them by a uniform episode and a uniform
start in it.

    python experiments/drqv2_disk.py --env-id walker_walk --preset paper

Batches are other ones than those of the other storages, and so are the weights in the end. The
process's resident memory is without those four.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cleanrl_scripts import drqv2_dmc

N_WORKERS = 4
FETCH_EVERY = 1000  # samples of a worker between looks for new episodes


class EpisodeReader(IterableDataset):
    """One worker's share of the episodes, and samples from it without end."""

    def __init__(self, folder: Path, capacity: int, n_step: int, gamma: float, seed: int):
        self.folder, self.capacity = folder, capacity
        self.n_step, self.gamma, self.seed = n_step, gamma, seed

    def __iter__(self) -> Iterator[tuple]:
        info = get_worker_info()
        worker, n_workers = (info.id, info.num_workers) if info else (0, 1)
        rng = np.random.default_rng([self.seed, worker])
        episodes: dict[int, dict[str, np.ndarray]] = {}
        for number in range(sys.maxsize):
            if number % FETCH_EVERY == 0:
                self.fetch(episodes, worker, n_workers)
            if not episodes:
                raise RuntimeError(
                    f"loader {worker + 1} of {n_workers} has no episode of {self.n_step} steps "
                    f"yet; give a --learning-starts that comes after {n_workers} episodes"
                )
            episode = episodes[list(episodes)[rng.integers(len(episodes))]]
            yield self.sample(episode, int(rng.integers(len(episode["reward"]) - self.n_step + 1)))

    def fetch(self, episodes: dict[int, dict], worker: int, n_workers: int) -> None:
        """Read this worker's new episodes, newest first, and let go of the oldest."""
        room = self.capacity // n_workers
        for path in sorted(self.folder.glob("*.npz"), reverse=True):
            number, length = map(int, path.stem.split("-"))
            if number % n_workers != worker or number in episodes or length < self.n_step:
                continue
            held = sum(len(each["reward"]) for each in episodes.values())
            if held + length > room:
                if not episodes or number < min(episodes):
                    path.unlink(missing_ok=True)
                    continue
                del episodes[min(episodes)]
            with np.load(path) as file:
                episodes[number] = dict(file)

    def sample(self, episode: dict[str, np.ndarray], start: int) -> tuple:
        reward, discount = np.float32(0), np.float32(1)
        for k in range(start, start + self.n_step):
            reward += discount * episode["reward"][k]
            discount *= np.float32(self.gamma)
        last = start + self.n_step - 1
        terminated = episode["terminated"][last]
        obs = episode["obs"]
        return obs[start], episode["action"][start], reward, obs[last + 1], terminated, discount


class EpisodesOnDisk:
    """The replay's side that is written to; `batches` starts the readers."""

    def __init__(self, args: drqv2_dmc.Args, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.capacity, self.seed = folder, args.buffer_size, args.seed
        self.n_step, self.gamma = args.n_step, args.gamma
        self.count = self.episodes = 0
        self.running: dict[str, list] = {}

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    @property
    def nbytes_stored(self) -> int:
        """Bytes of the files, and of the stacks of the episode that is running."""
        files = sum(path.stat().st_size for path in self.folder.glob("*.npz"))
        return files + sum(stack.nbytes for stack in self.running.get("obs", ()))

    def add(self, obs, action, reward, terminated, truncated, next_obs, info) -> None:  # noqa: ARG002
        row = {"obs": obs[0], "action": action[0], "reward": np.float32(reward[0])}
        row["terminated"] = np.float32(terminated[0])
        for name, value in row.items():
            self.running.setdefault(name, []).append(value)
        self.count += 1
        if terminated[0] or truncated[0]:
            self.running["obs"].append(info["final_obs"][0])
            self._write()

    def cut(self) -> None:
        """Drop the running episode: only finished ones are ever read."""
        self.count -= len(self.running.get("reward", ()))
        self.running = {}

    def _write(self) -> None:
        length = len(self.running["reward"])
        unfinished = self.folder / "unfinished"
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **{name: np.stack(x) for name, x in self.running.items()})
        unfinished.rename(self.folder / f"{self.episodes:08d}-{length}.npz")
        self.episodes += 1
        self.running = {}

    def checkpoint(self, path: Path) -> int:
        """Write what is not in the episodes' files, which lie where they are."""
        path.mkdir(exist_ok=True)
        running = len(self.running.get("reward", ()))  # `cut` drops it where this is gone on from
        held = {**vars(self), "folder": str(self.folder), "count": self.count - running}
        del held["running"]
        (path / "unfinished").write_text(json.dumps(held))
        (path / "unfinished").rename(path / f"{self.count}.json")
        return self.count

    @classmethod
    def restore(cls, path: Path, at: int) -> EpisodesOnDisk:
        """Go on with the episodes of a checkpoint."""
        replay = object.__new__(cls)
        vars(replay).update(json.loads((path / f"{at}.json").read_text()), running={})
        replay.folder = Path(replay.folder)
        return replay

    def batches(self, batch_size: int, lookahead: int) -> Iterator[drqv2_dmc.Batch]:  # noqa: ARG002
        """Batches; as many are read ahead as torch's loader does by itself."""
        reader = EpisodeReader(self.folder, self.capacity, self.n_step, self.gamma, self.seed)
        with warnings.catch_warnings():
            # As many as published, even where there are fewer cores.
            warnings.filterwarnings("ignore", "This DataLoader will create 4 worker processes")
            loader = DataLoader(
                reader, batch_size, num_workers=N_WORKERS, worker_init_fn=use_one_thread
            )
            batches = iter(loader)
        for tensors in batches:
            yield drqv2_dmc.Batch(*(tensor.numpy() for tensor in tensors))


def use_one_thread(worker: int) -> None:  # noqa: ARG001
    torch.set_num_threads(1)


def make_storage(args: drqv2_dmc.Args, envs: Any, replay: Any = None) -> drqv2_dmc.Storage:
    """Take the place of the script's: stacks, and the episodes' files in the working folder."""
    if replay is None:
        replay = EpisodesOnDisk(args, Path("episodes"))
    return drqv2_dmc.Storage(envs, replay, lambda obs: obs)


def main(argv: list[str] | None = None) -> None:
    args = drqv2_dmc.parse_args(argv)
    args.obs_storage = "dense"  # stacks; make_storage says where they go
    drqv2_dmc.make_storage, drqv2_dmc.DenseReplay = make_storage, EpisodesOnDisk
    try:
        drqv2_dmc.train(args)
    except KeyboardInterrupt:
        sys.exit("drqv2_disk.py: interrupted; --resume goes on from a checkpoint, if there is one")
    except RuntimeError as error:
        if "--learning-starts" not in str(error):
            raise
        drqv2_dmc.fail(str(error).strip().splitlines()[-1])


if __name__ == "__main__":
    main()
