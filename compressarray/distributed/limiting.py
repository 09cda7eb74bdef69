"""How many transitions may be added, and how many drawn, so that neither runs ahead."""

from __future__ import annotations

from typing import Any


class SamplesPerInsert:
    """Keeps the number of transitions that are drawn for each one that is added near a ratio.

    With I transitions added and S drawn, ``I * samples_per_insert - S`` is held within
    `error_buffer` of what it is when drawing begins, as Reverb's SampleToInsertRatio does (Cassirer
    et al., Reverb: a framework for experience replay, 2021, arXiv 2102.04736).

    Parameters
    ----------
    samples_per_insert : float or None
        How often each transition is drawn on average: the batch size times the updates for each
        step. None: only `min_size` counts, and nobody waits for the learner.
    min_size : int
        Transitions that have to be added before any is drawn.
    error_buffer : float, optional
        Left out, a tenth of what `min_size` transitions are worth, or as much more as batches and
        what is added at once need.
    """

    def __init__(
        self,
        samples_per_insert: float | None = None,
        min_size: int = 1,
        error_buffer: float | None = None,
    ) -> None:
        if samples_per_insert is not None and not 0 < samples_per_insert < float("inf"):
            raise ValueError(
                f"samples_per_insert={samples_per_insert} must be above 0; None for no limit"
            )
        if min_size < 1:
            raise ValueError(f"min_size={min_size} must be at least 1")
        if error_buffer is not None and not error_buffer > 0:
            raise ValueError(f"error_buffer={error_buffer} must be above 0")
        self.samples_per_insert = samples_per_insert
        self.min_size = min_size
        ratio = samples_per_insert or 0.0
        self.error_buffer = 0.1 * min_size * ratio if error_buffer is None else error_buffer
        self._may_grow = error_buffer is None
        self._offset = ratio * min_size
        self.inserts = 0
        self.samples = 0

    def may_sample(self, n: int) -> bool:
        """Say whether ``n`` transitions may be drawn now."""
        if self.inserts < self.min_size:
            return False
        if self.samples_per_insert is None:
            return True
        ahead = self.inserts * self.samples_per_insert - self.samples
        return ahead - n >= self._offset - self.error_buffer

    def may_insert(self, n: int, under_way: int = 0) -> bool:
        """Say whether ``n`` transitions may be added now, beside those that are under way."""
        inserts = self.inserts + under_way
        if self.samples_per_insert is None or inserts < self.min_size:
            return True
        ahead = (inserts + n) * self.samples_per_insert - self.samples
        return ahead <= self._offset + self.error_buffer

    def fit(self, n_samples: int, n_inserts: int) -> None:
        """Make room for steps of these sizes, so that both sides never wait for each other.

        Raises
        ------
        ValueError
            If the `error_buffer` that was given has none.
        """
        if self.samples_per_insert is None:
            return
        least = (n_samples + n_inserts * self.samples_per_insert) / 2
        if self.error_buffer >= least:
            return
        if not self._may_grow:
            raise ValueError(
                f"error_buffer={self.error_buffer:g} is too small for batches of {n_samples} and "
                f"{n_inserts} transitions that are added at once at samples_per_insert="
                f"{self.samples_per_insert:g}: learner and runners would wait for each other. Give "
                f"at least {least:g}"
            )
        self.error_buffer = least

    def state(self) -> dict[str, Any]:
        """What it takes to go on."""
        return {"inserts": self.inserts, "samples": self.samples}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.inserts, self.samples = int(state["inserts"]), int(state["samples"])
