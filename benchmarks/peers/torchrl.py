"""TorchRL's ReplayBuffer over two of its storages."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import DENSE_BYTES, Drawn, Step, System, numbers


class LazyTensor(System):
    name = "TorchRL LazyTensorStorage"
    package = "torchrl"
    needs = ("torchrl", "tensordict")
    bytes_expected = DENSE_BYTES + 100

    def __init__(self, capacity: int, n_actions: int) -> None:  # noqa: ARG002
        import torch
        from tensordict import TensorDict
        from torchrl.data import ReplayBuffer

        self.torch, self.tensordict = torch, TensorDict
        self.buffer = ReplayBuffer(storage=self.make_storage(capacity))

    def make_storage(self, capacity: int) -> Any:
        from torchrl.data import LazyTensorStorage

        return LazyTensorStorage(capacity)

    def add(self, step: Step) -> None:
        tensor = self.torch.from_numpy
        self.buffer.add(
            # Flat keys: CompressedListStorage leaves nested ones as they are.
            self.tensordict(
                {
                    "obs": tensor(step.obs),
                    "next_obs": tensor(step.next_obs),
                    "action": self.torch.tensor(step.action),
                    "reward": self.torch.tensor(step.reward),
                    "terminated": self.torch.tensor(step.terminated),
                }
            )
        )

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)

    def drawn(self, sample: Any) -> Drawn:
        return Drawn(numbers(sample["reward"]), sample["obs"].numpy(), sample["next_obs"].numpy())

    def held(self) -> int:
        return len(self.buffer)

    def own_bytes(self) -> int | None:
        return self.buffer.storage._storage.bytes()


class CompressedList(LazyTensor):
    name = "TorchRL CompressedListStorage"
    slow = True
    bytes_expected = 20_000

    def make_storage(self, capacity: int) -> Any:
        from torchrl.data import CompressedListStorage

        return CompressedListStorage(capacity)

    def own_bytes(self) -> int | None:
        """Payloads; the objects around them are not in it."""
        return self.buffer.storage.bytes()
