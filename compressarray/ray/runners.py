"""Environment runners as Ray actors."""

from __future__ import annotations

from typing import Any

import ray

from compressarray.distributed import EnvRunner


class RayEnvRunner(EnvRunner):
    """An `EnvRunner` whose weights come as a reference into Ray's object store.

    It is read once for each new number, from this node's copy.
    """

    def _fetched(self, weights: Any) -> Any:
        (reference,) = weights  # in a list, so that Ray does not fetch it for every call
        return ray.get(reference)


def start_runners(
    runner: type[RayEnvRunner], n: int, *arguments: Any, **options: Any
) -> dict[str, Any]:
    """Start runners, each as an actor that Ray starts anew wherever it dies.

    Parameters
    ----------
    runner : type
        A subclass of `RayEnvRunner`.
    n : int
        How many.
    *arguments
        For each: ``runner(i, *arguments)``, i from 0.
    **options
        For Ray's actors, such as ``num_cpus``, ``resources`` or ``runtime_env``. Left out, each
        takes one CPU and is started anew without limit.

    Returns
    -------
    dict of str to actor handle
        By their names, for `RayReplay`. They may be given to several learners.
    """
    if not (isinstance(runner, type) and issubclass(runner, RayEnvRunner)):
        raise TypeError(f"runner is {runner!r}; it must be a subclass of RayEnvRunner")
    if n < 1:
        raise ValueError(f"n={n} runners: at least 1 is needed")
    actor = ray.remote(runner).options(**{"num_cpus": 1, "max_restarts": -1, **options})
    return {f"runner {i}": actor.remote(i, *arguments) for i in range(n)}
