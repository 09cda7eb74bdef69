"""Dopamine's ReplayBuffer, which keeps each stack compressed with snappy."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import Drawn, Step, System, numbers


class Dopamine(System):
    """Given whole transitions.

    Its own accumulator makes stacks of single frames, pads them with zeros, and after an episode's
    end yields the last transition again and again with fewer frames (dopamine-rl 4.1.2), so that
    what it returns could not be compared. The buffer takes any accumulator.
    """

    name = "Dopamine, compress"
    package = "dopamine-rl"
    needs = ("dopamine",)
    slow = True
    bytes_expected = 20_000

    def __init__(self, capacity: int, n_actions: int) -> None:  # noqa: ARG002
        from dopamine.jax.replay_memory.elements import ReplayElement
        from dopamine.jax.replay_memory.replay_buffer import ReplayBuffer
        from dopamine.jax.replay_memory.samplers import UniformSamplingDistribution

        self.element = ReplayElement
        self.buffer = ReplayBuffer(
            _AsGiven(), UniformSamplingDistribution(0), batch_size=32, max_capacity=capacity
        )

    def add(self, step: Step) -> None:
        self.buffer.add(
            self.element(
                state=step.obs,
                action=step.action,
                reward=step.reward,
                next_state=step.next_obs,
                is_terminal=step.terminated,
                episode_end=step.terminated or step.truncated,
            )
        )

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)

    def drawn(self, sample: Any) -> Drawn:
        return Drawn(numbers(sample.reward), sample.state, sample.next_state)

    def held(self) -> int:
        return len(self.buffer._memory)

    def own_bytes(self) -> int | None:
        """Payloads; the objects around them are not in it."""
        memory = self.buffer._memory.values()
        return sum(element.state.nbytes + element.next_state.nbytes for element in memory)


class _AsGiven:
    """An accumulator of what is whole already."""

    def accumulate(self, transition: Any) -> Any:
        yield transition

    def clear(self) -> None:
        return
