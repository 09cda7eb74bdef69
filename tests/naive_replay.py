"""The oracle of ``ReplayBuffer``: lists of everything that was ever added.

Written from the contract, for reading; it imports nothing from the library. Observations are kept
as they are to be sampled, dense, both of each transition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Step(NamedTuple):
    """One transition, as it was added."""

    obs: Any
    action: Any
    reward: float
    next_obs: Any
    terminated: bool
    truncated: bool


class NaiveReplay:
    """Transitions of ``n_envs`` lanes, each of which keeps the newest ``n_slots``.

    Parameters
    ----------
    stack_size, padding : optional
        Where newest frames are added: the stacks to be made of them (in a dict, of the entry
        "image"), and the frame before an episode's first one (None: that one).
    """

    def __init__(
        self,
        n_envs: int,
        n_slots: int,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        full_windows: bool = False,
        autoreset_mode: str = "same_step",
        stack_size: int | None = None,
        padding: Any = None,
    ) -> None:
        self.n_envs = n_envs
        self.n_slots = n_slots
        self.n_step = n_step
        self.gamma = gamma
        self.full_windows = full_windows
        self.autoreset_mode = autoreset_mode
        self.stack_size = stack_size
        self.padding = padding
        self.steps: list[list[Step]] = [[] for _ in range(n_envs)]
        self.gone = [0] * n_envs  # steps that a smaller ring has let go of
        self.ends: list[set[int]] = [set() for _ in range(n_envs)]  # the last step of each episode
        self.shown: list[Any] = [None] * n_envs  # what each lane's last step led to, as added
        self.stacks: list[Any] = [None] * n_envs
        # "runs", "awaits" a reset after an end, or "begins" with the next observation
        self.phase = ["begins"] * n_envs

    def resize(self, n_slots: int) -> None:
        """Keep the newest ``n_slots`` from now on."""
        self.gone = [self.held(lane).start for lane in range(self.n_envs)]
        self.n_slots = n_slots
        self.gone = [self.held(lane).start for lane in range(self.n_envs)]

    def add(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        next_obs: Any,
        final_obs: Any = None,
        was_reset: Any = None,
        lanes: Any = None,
    ) -> None:
        """Add one step of each lane, or of some; arguments have a row for each lane in any case.

        ``final_obs[lane]`` is looked at where an environment was reset in the step that ended its
        episode. ``was_reset`` says where an end is followed by a reset; None: everywhere.
        """
        for lane in range(self.n_envs) if lanes is None else lanes:
            ended = bool(terminated[lane] or truncated[lane])
            told = None if was_reset is None else bool(was_reset[lane])
            phase, shown, before = self.phase[lane], self.shown[lane], _row(obs, lane)
            resets_itself = (
                self.autoreset_mode == "next_step"
                and phase == "awaits"
                and _image(before).tobytes() == _image(shown).tobytes()
                and not ended  # a reset's row ends nothing
                and told is not False
            )
            if resets_itself:
                self.phase[lane] = "begins"
                continue
            in_this_step = self.autoreset_mode == "same_step" and ended and told is not False
            begins = phase == "begins" or not _equal(before, shown)
            if self.autoreset_mode == "disabled" and phase == "awaits":
                begins = begins or told is not False
            elif not (self.autoreset_mode == "same_step" and ended):
                begins = begins or told is True
            led_to = _row(final_obs if in_this_step else next_obs, lane)
            self._add_step(lane, before, led_to, begins, action, reward, terminated, truncated)
            if in_this_step:
                self.phase[lane] = "begins"
            else:
                waits = ended and self.autoreset_mode != "same_step"
                self.phase[lane] = "awaits" if waits else "runs"

    def _add_step(self, lane: int, obs: Any, led_to: Any, begins: bool, action: Any, reward: Any,
                  terminated: Any, truncated: Any) -> None:  # fmt: skip
        steps, ends = self.steps[lane], self.ends[lane]
        if steps and begins:
            ends.add(len(steps) - 1)  # perhaps a reset that nobody announced
        sampled, sampled_next = obs, led_to
        if self.stack_size is not None:
            frame, next_frame = _image(obs), _image(led_to)
            stack = self._begin_stack(frame) if begins else self.stacks[lane]
            self.stacks[lane] = np.concatenate([stack[1:], next_frame[None]])
            sampled = _with_image(obs, stack)
            sampled_next = _with_image(led_to, self.stacks[lane])
        steps.append(
            Step(
                sampled,
                np.array(action[lane]),
                float(np.float32(reward[lane])),
                sampled_next,
                bool(terminated[lane]),
                bool(truncated[lane]),
            )
        )
        self.shown[lane] = led_to
        if terminated[lane] or truncated[lane]:
            ends.add(len(steps) - 1)

    def _begin_stack(self, frame: Any) -> Any:
        padding = frame if self.padding is None else self.padding
        return np.stack([padding] * (self.stack_size - 1) + [frame])

    def cut(self, lane: int) -> None:
        """End a lane's episode from outside."""
        if self.steps[lane]:
            self.ends[lane].add(len(self.steps[lane]) - 1)
        self.phase[lane] = "begins"

    def clear(self) -> None:
        """Forget the steps; the lanes go on as they stand."""
        self.steps = [[] for _ in range(self.n_envs)]
        self.ends = [set() for _ in range(self.n_envs)]
        self.gone = [0] * self.n_envs

    def __len__(self) -> int:
        return sum(len(self.held(lane)) for lane in range(self.n_envs))

    def held(self, lane: int) -> range:
        n = len(self.steps[lane])
        return range(max(self.gone[lane], n - self.n_slots), n)

    def window(self, lane: int, start: int, length: int) -> range:
        """The steps from ``start`` on, up to ``length`` of them or to the episode's end."""
        last = start
        while last - start + 1 < length and last not in self.ends[lane]:
            if last + 1 == len(self.steps[lane]):
                break
            last += 1
        return range(start, last + 1)

    def samplable(self) -> dict[int, dict[str, Any]]:
        """Everything that may be drawn, by name, with what a batch should hold for it."""
        found = {}
        for lane in range(self.n_envs):
            for t in self.held(lane):
                window = self.window(lane, t, self.n_step)
                is_cut_short = window[-1] in self.ends[lane] and not self.full_windows
                if len(window) < self.n_step and not is_cut_short:
                    continue
                steps = [self.steps[lane][k] for k in window]
                total = 0.0
                for k, step in enumerate(steps):
                    total += self.gamma**k * step.reward
                found[t * self.n_envs + lane] = {
                    "obs": steps[0].obs,
                    "action": steps[0].action,
                    "reward": np.float32(total),
                    "next_obs": steps[-1].next_obs,
                    "terminated": np.float32(steps[-1].terminated),
                    "discount": np.float32(self.gamma ** len(steps)),
                }
        return found

    def sequences(self, length: int) -> dict[int, dict[str, Any]]:
        """Every run of ``length`` steps inside an episode, by the name of its first step."""
        found = {}
        for lane in range(self.n_envs):
            for t in self.held(lane):
                window = self.window(lane, t, length)
                if len(window) < length:
                    continue
                steps = [self.steps[lane][k] for k in window]
                found[t * self.n_envs + lane] = {
                    "obs": _stack([step.obs for step in steps]),
                    "action": np.stack([step.action for step in steps]),
                    "reward": np.array([step.reward for step in steps], np.float32),
                    "next_obs": _stack([step.next_obs for step in steps]),
                    "terminated": np.array([step.terminated for step in steps], np.float32),
                    "truncated": np.array([step.truncated for step in steps], np.float32),
                    "is_first": np.array(
                        [k == 0 or k - 1 in self.ends[lane] for k in window], np.float32
                    ),
                    "index": np.array([k * self.n_envs + lane for k in window]),
                }
        return found

    def runs(
        self, length: int, *, burn_in: int = 0, pad: bool = False, cross_episodes: bool = False
    ) -> dict[int, list[int | None]]:
        """Every run that may be drawn, by the name of its first step; None where it is padded."""
        found: dict[int, list[int | None]] = {}
        for lane in range(self.n_envs):
            for t in self.held(lane):
                end = min(t + length, len(self.steps[lane]))
                steps = range(t, end) if cross_episodes else self.window(lane, t, length)
                if len(steps) < length and not (pad and steps[-1] in self.ends[lane]):
                    continue
                before: list[int | None] = []
                for k in range(t - 1, t - burn_in - 1, -1):
                    is_held = k in self.held(lane) and None not in before
                    before.append(
                        k if is_held and (cross_episodes or k not in self.ends[lane]) else None
                    )
                times = [*before[::-1], *steps, *[None] * (length - len(steps))]
                found[t * self.n_envs + lane] = [
                    None if k is None else k * self.n_envs + lane for k in times
                ]
        return found

    def step_of(self, name: int) -> dict[str, Any]:
        """A single step by its name."""
        t, lane = divmod(name, self.n_envs)
        step = self.steps[lane][t]
        return {
            "obs": step.obs,
            "action": step.action,
            "reward": np.float32(step.reward),
            "next_obs": step.next_obs,
            "terminated": np.float32(step.terminated),
            "truncated": np.float32(step.truncated),
            "is_first": np.float32(t == 0 or t - 1 in self.ends[lane]),
        }

    def set_reward(self, name: int, reward: float) -> None:
        t, lane = divmod(name, self.n_envs)
        self.steps[lane][t] = self.steps[lane][t]._replace(reward=float(np.float32(reward)))

    def names(self) -> list[int]:
        """Everything that is held, in order."""
        lanes = range(self.n_envs)
        return sorted(t * self.n_envs + lane for lane in lanes for t in self.held(lane))

    def n_episodes(self) -> int:
        """Episodes of which a step is held."""
        return sum(
            len({len([e for e in self.ends[lane] if e < t]) for t in self.held(lane)})
            for lane in range(self.n_envs)
        )


def _row(batch: Any, lane: int) -> Any:
    if isinstance(batch, dict):
        return {key: np.array(value[lane]) for key, value in batch.items()}
    return np.array(batch[lane])


def _image(observation: Any) -> Any:
    return observation["image"] if isinstance(observation, dict) else observation


def _with_image(observation: Any, stack: Any) -> Any:
    return {**observation, "image": stack} if isinstance(observation, dict) else stack


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_equal(a[key], b[key]) for key in a)
    return a.tobytes() == b.tobytes()


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([each[key] for each in observations]) for key in observations[0]}
    return np.stack(observations)
