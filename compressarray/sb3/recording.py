"""Records of games: what was seen and done, to be watched, counted, or learnt from.

All of them take what Stable-Baselines3's replay buffers are given, so that `VecRecorder` and
`compressarray.sb3.training` fill either.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from compressarray.replay import ReplayBuffer
from compressarray.replay.windows import END, FIRST

AnyArray = npt.NDArray[Any]
Infos = Sequence[Mapping[str, Any]]
R = TypeVar("R", bound="RecordBuffer")

_RGB = 3
# What stands in the place of frames where none are kept: a byte that counts steps, so that one
# seems to lead to the next one.
_COUNTED = spaces.Box(0, 255, (1,), np.uint8)


@dataclass(frozen=True)
class Episode:
    """A part of a record between two resets of an environment.

    Attributes
    ----------
    lane : int
        Which environment.
    index : ndarray, (T,) int64
        Names of its steps, for `ReplayBuffer.get`.
    is_whole : bool
        Whether its first step is held, and it has ended.
    """

    lane: int
    index: npt.NDArray[np.int64]
    is_whole: bool


class BaseRecordBuffer(ABC):
    """What is filled while a policy plays; the signature of Stable-Baselines3's replay buffers."""

    @abstractmethod
    def add(
        self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Infos,
        features: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add one step of all environments.

        Parameters
        ----------
        obs, next_obs : (n_envs, *observation shape)
        action : (n_envs, *action shape)
            As the environment was given it.
        reward : (n_envs,)
        done : (n_envs,) bool
        infos : list of dict
            ``terminal_observation`` and ``TimeLimit.truncated`` are looked at.
        features : mapping of str to (n_envs, *feature shape), optional
            What else is kept, if anything; see `RecordBuffer`.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Steps that are held."""


class CountingRecordBuffer(BaseRecordBuffer):
    """Keeps nothing, and counts.

    Attributes
    ----------
    n_steps, n_episodes : int
        That were ever added; of all environments together.
    """

    def __init__(self) -> None:
        self.n_steps = 0
        self.n_episodes = 0

    def add(
        self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Infos,
        features: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Count one step of all environments."""
        del obs, next_obs, action, reward, infos, features
        self.n_steps += len(done)
        self.n_episodes += int(np.count_nonzero(done))

    def __len__(self) -> int:
        return self.n_steps


class RecordBuffer(BaseRecordBuffer):
    """The newest games of some environments: frames compressed, actions, rewards, features.

    Parameters
    ----------
    size : int
        Steps that are held, of all environments together.
    observation_space : gymnasium.spaces.Box or Dict
        Of what is recorded: the observations, or any other pictures.
    action_space : gymnasium.spaces.Space
    n_envs : int
    features : mapping of str to gymnasium.spaces.Box or Discrete, optional
        What else is kept with each step, such as a game's variables.
    frame_channels : int, optional
        Channels of one frame, where frames are stacked along the channels. Left out: three where
        their number is a multiple of that, one otherwise.
    codec : str or object
        As for `compressarray.DiffFrameArray`.

    Attributes
    ----------
    buffer : compressarray.ReplayBuffer
        What holds the record, of single steps: an offline data set as it is.
    """

    def __init__(
        self,
        size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        n_envs: int = 1,
        *,
        features: Mapping[str, Any] | None = None,
        frame_channels: int | None = None,
        codec: Any = "delta",
    ) -> None:
        axis, channels = _stack_of(observation_space, frame_channels)
        self.buffer = ReplayBuffer(
            size,
            observation_space,
            action_space,
            n_envs,
            stack_axis=axis,
            frame_channels=channels,
            codec=codec,
            fields=features,
            autoreset_mode="same_step",
        )
        self._channels = _channels_of(self.buffer)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Of what is recorded."""
        space: spaces.Space[Any] = self.buffer._given["observation_space"]
        return space

    def add(
        self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Infos,
        features: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add one step of all environments; see `BaseRecordBuffer.add`.

        Raises
        ------
        TypeError, ValueError
            For what does not fit the spaces, features that are missing or not asked for, and an
            end without its ``terminal_observation``; nothing is added then.
        """
        ends = np.asarray(done, np.bool_)
        cut = ends & np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        info: dict[str, Any] = {}
        if ends.any():
            final = np.full(len(ends), None, object)
            for lane in np.flatnonzero(ends).tolist():
                final[lane] = infos[lane].get("terminal_observation")
            is_there = np.array([each is not None for each in final])
            info = {"final_obs": final, "_final_obs": ends & is_there}
        self.buffer.add(obs, action, reward, ends & ~cut, cut, next_obs, info, fields=features)

    def __len__(self) -> int:
        return len(self.buffer)

    def episodes(self) -> list[Episode]:
        """Return the episodes that are held, lane by lane, oldest first.

        The first and the last one of a lane may be parts.
        """
        with self.buffer._held():
            held = self.buffer._transitions
            found = []
            for lane in range(held.n_lanes):
                times = np.arange(held.oldest[lane], held.counts[lane])
                if not len(times):
                    continue
                flags = held.flags[lane, times % held.n_slots]
                starts = np.flatnonzero(flags & FIRST)
                for part in np.split(np.arange(len(times)), starts[starts > 0]):
                    is_whole = bool(flags[part[0]] & FIRST and flags[part[-1]] & END)
                    names = times[part] * held.n_lanes + lane
                    found.append(Episode(lane, names, is_whole))
        return found

    def frames(self, episode: Episode) -> AnyArray:
        """Return what was seen in an episode, the newest frame of each observation, and the last.

        Returns
        -------
        ndarray, (T + 1, H, W) or (T + 1, H, W, 3)
            Yours.

        Raises
        ------
        IndexError
            If it has left the record.
        """
        steps = self.buffer.get(episode.index)
        if isinstance(steps.obs, dict):
            raise TypeError("a record of Dict observations has no frames to show")
        seen = np.concatenate([np.asarray(steps.obs), np.asarray(steps.next_obs)[-1:]])
        if seen.ndim == 3:
            return seen
        if seen.ndim != 4:
            raise TypeError(f"observations of shape {seen.shape[1:]} are no images")
        if not seen.shape[3] < seen.shape[1]:  # channels first
            seen = np.moveaxis(seen, 1, -1)
        newest = seen[..., -self._channels :]
        return np.ascontiguousarray(newest if self._channels == _RGB else newest[..., -1])

    def save_video(
        self, path: str | os.PathLike[str], episode: Episode, *, fps: float = 30, scale: int = 1
    ) -> None:
        """Write an episode as a video, by imageio (the extra ``video``).

        Parameters
        ----------
        path : str or path
            Its ending says which kind: ``.mp4``, which is lossy, or ``.gif``.
        episode : Episode
        fps : float
            Frames a second.
        scale : int
            Each pixel is shown as so many by so many.
        """
        try:
            import imageio.v2 as imageio
        except ImportError:
            raise ImportError("videos need imageio: pip install 'compressarray[video]'") from None
        frames = self.frames(episode)
        if frames.dtype != np.uint8:
            raise TypeError(f"frames of {frames.dtype} make no video; record uint8")
        options: dict[str, Any] = {"duration": 1000 / fps, "loop": 0}
        if not str(path).lower().endswith(".gif"):
            options = {"fps": fps, "macro_block_size": 1}
        writer: Any = imageio.get_writer(os.fspath(path), **options)
        with writer as video:
            for frame in frames:
                video.append_data(frame.repeat(scale, 0).repeat(scale, 1))

    def to_replay_buffer(self, **arguments: Any) -> ReplayBuffer:
        """Return a `ReplayBuffer` of the whole episodes, to learn from.

        Parameters
        ----------
        **arguments
            Of `ReplayBuffer`, such as ``n_step=3, prioritized=True, device="cuda"``. Its capacity
            is that of the record, unless given.
        """
        given = self.buffer._given
        settings = {
            "capacity": self.buffer.capacity,
            "stack_axis": given["stack_axis"],
            "frame_channels": given["frame_channels"],
            "fields": given["fields"],
            **arguments,
        }
        made = ReplayBuffer(
            settings.pop("capacity"), given["observation_space"], given["action_space"], None,
            **settings,
        )  # fmt: skip
        for episode in self.episodes():
            if not episode.is_whole:
                continue
            steps = self.buffer.get(episode.index)
            made.add_episode(
                _with_last(steps.obs, steps.next_obs),
                steps.action,
                steps.reward,
                bool(steps.terminated[-1]),
                bool(steps.truncated[-1]),
                fields=steps.fields or None,
            )
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to the file of a `ReplayBuffer`, which `ReplayBuffer.load` reads, too."""
        self.buffer.save(path)

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Return the record that was saved; see `ReplayBuffer.load` for what is refused."""
        record = object.__new__(cls)
        record.buffer = ReplayBuffer.load(path)
        record._channels = _channels_of(record.buffer)
        return record


class FramelessRecordBuffer(RecordBuffer):
    """Games without their frames: actions, rewards, ends, features.

    Parameters
    ----------
    size, action_space, n_envs, features
        As for `RecordBuffer`.
    """

    def __init__(
        self,
        size: int,
        action_space: spaces.Space[Any],
        n_envs: int = 1,
        *,
        features: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(size, _COUNTED, action_space, n_envs, features=features)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Whatever it is."""
        raise AttributeError("a record without frames is of any observations")

    _count: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)

    def add(
        self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Infos,
        features: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Add one step of all environments, but nothing of `obs` and `next_obs`."""
        del obs, next_obs
        count = self._count
        if len(count) != len(done):
            count = self._count = np.zeros(len(done), np.uint8)
        ends = [{**info, "terminal_observation": count[[k]] + 1} for k, info in enumerate(infos)]
        after = count + np.where(done, np.uint8(2), np.uint8(1))
        super().add(count[:, None], after[:, None], action, reward, done, ends, features)
        self._count = after


class VecRecorder(VecEnvWrapper):
    """Fills buffers with what a vectorized environment does, whoever steps it.

    Parameters
    ----------
    venv : VecEnv
        Whole: frames stacked and all. Where it is normalized, what is recorded is not.
    buffers : sequence
        Records, or replay buffers of Stable-Baselines3's, of as many environments.
    scaled : callable, optional
        What replay buffers are given in the place of actions: Stable-Baselines3's off-policy
        algorithms keep those of a Box scaled, by ``model.policy.scale_action``.

    Attributes
    ----------
    seconds : list of float
        That each buffer has spent adding.
    """

    def __init__(self, venv: VecEnv, buffers: Sequence[Any], scaled: Any = None) -> None:
        super().__init__(venv)
        for buffer in buffers:
            n_envs = getattr(getattr(buffer, "buffer", buffer), "n_envs", self.num_envs)
            if n_envs != self.num_envs:
                raise ValueError(
                    f"a {type(buffer).__name__} of n_envs={n_envs} is to be filled from "
                    f"{self.num_envs} environments; build it with n_envs={self.num_envs}"
                )
            space = getattr(buffer, "observation_space", self.observation_space)
            if space != self.observation_space:
                raise ValueError(
                    f"a {type(buffer).__name__} of {space} is to be filled with observations of "
                    f"{self.observation_space}; build it of that space"
                )
        self.buffers = list(buffers)
        self.seconds = [0.0] * len(self.buffers)
        self._scaled = scaled
        self._normalizer = _normalizer_of(venv)
        self._actions: AnyArray = np.zeros(0)
        self._last: Any = None

    def reset(self) -> Any:
        """Reset all environments."""
        obs = self.venv.reset()
        self._last = self._original(obs)
        return obs

    def step_async(self, actions: AnyArray) -> None:
        """Step all environments, and remember by what."""
        if self._last is None:
            raise RuntimeError("this environment was stepped before it was reset")
        self._actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Wait for the step, and have it recorded."""
        obs, rewards, dones, infos = self.venv.step_wait()
        after, paid = self._original(obs), rewards
        if self._normalizer is not None:
            paid = self._normalizer.get_original_reward()
        reached, told = _with_terminal(after, dones, infos, self._normalizer)
        for number, buffer in enumerate(self.buffers):
            actions = self._actions
            if self._scaled is not None and not isinstance(buffer, BaseRecordBuffer):
                actions = self._scaled(actions)
            start = perf_counter()
            buffer.add(self._last, reached, actions, paid, dones, told)
            self.seconds[number] += perf_counter() - start
        self._last = after
        return obs, rewards, dones, infos

    def _original(self, obs: Any) -> Any:
        original = obs if self._normalizer is None else self._normalizer.get_original_obs()
        if isinstance(original, dict):
            return {key: np.array(each) for key, each in original.items()}
        return np.array(original)  # environments may write the next one over it


def _normalizer_of(venv: Any) -> VecNormalize | None:
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, VecNormalize):
            return venv
        venv = venv.venv
    return None


def _with_terminal(
    after: Any, dones: Any, infos: Infos, normalizer: VecNormalize | None
) -> tuple[Any, list[dict[str, Any]]]:
    """What a step led to, and its infos: ends with their last observations, as they were."""
    told = [dict(info) for info in infos]
    ended = np.flatnonzero(dones).tolist()
    if not ended:
        return after, told
    reached = {k: v.copy() for k, v in after.items()} if isinstance(after, dict) else after.copy()
    for lane in ended:
        last = infos[lane].get("terminal_observation")
        if last is None:
            raise ValueError(
                f"environment {lane} ended without infos[{lane}]['terminal_observation']; only "
                "environments that keep it, as Stable-Baselines3's do, can be recorded"
            )
        if normalizer is not None:
            last = normalizer.unnormalize_obs(last)
        # Rounded to the space's floats, where it was unnormalized.
        if isinstance(reached, dict):
            for key, values in reached.items():
                values[lane] = last[key]
            told[lane]["terminal_observation"] = {k: v[lane] for k, v in reached.items()}
        else:
            reached[lane] = last
            told[lane]["terminal_observation"] = reached[lane]
    return reached, told


def _stack_of(space: Any, frame_channels: int | None) -> tuple[int | None, int]:
    """Along which axis frames are stacked, and of how many channels each is."""
    if isinstance(space, spaces.Dict):
        images = [each for each in space.values() if len(each.shape or ()) == 3]
        return _stack_of(images[0], frame_channels) if images else (None, 1)
    shape = getattr(space, "shape", None)
    if shape is None or len(shape) != 3:
        return None, 1
    axis = 2 if shape[2] < shape[0] else 0
    n = shape[axis]
    channels = (_RGB if n % _RGB == 0 else 1) if frame_channels is None else frame_channels
    if n % max(channels, 1) or channels < 1:
        raise ValueError(f"frame_channels={frame_channels} does not divide the {n} channels")
    return (None, 1) if n == channels else (axis, channels)


def _channels_of(buffer: ReplayBuffer) -> int:
    """Channels of one frame."""
    shape = buffer._given["observation_space"].shape
    if buffer._given["stack_axis"] is not None or shape is None or len(shape) != 3:
        return int(buffer._given["frame_channels"])
    return int(shape[2] if shape[2] < shape[0] else shape[0])


def _with_last(obs: Any, next_obs: Any) -> Any:
    """All observations of an episode."""
    if isinstance(obs, dict):
        return {key: _with_last(each, next_obs[key]) for key, each in obs.items()}
    return np.concatenate([np.asarray(obs), np.asarray(next_obs)[-1:]])
