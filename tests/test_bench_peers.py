"""The benchmark of peers: its check catches wrong pixels, and it runs from end to end."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from benchmarks import bench_peers
from benchmarks.frames import play_through
from benchmarks.peers import SYSTEMS, checking
from benchmarks.peers.base import System, steps
from benchmarks.peers.frame_rings import FrameRing
from benchmarks.peers.ours import Delta


class NoTerminalFrame(FrameRing):
    """Takes an episode's last `next_obs` for the next one's first observation."""

    name = "no terminal frame"

    def add(self, step):
        if step.begins and self.count:
            self.count -= 1
        super().add(step)


class NoPadding(FrameRing):
    """Reaches back into the episode before."""

    name = "no padding"

    def draw(self, batch_size):
        slots, _ = super().draw(batch_size)
        return slots, (slots[:, None] + np.arange(-3, 2)) % self.capacity


class NoSeam(FrameRing):
    """Draws stacks that reach across the write position."""

    name = "no seam"

    def draw(self, batch_size):
        first = self.count - self.capacity
        self.begins[[n % self.capacity for n in range(first, first + 3) if n >= 0]] = True
        newest = self.rng.integers(max(first, 0), self.count - 1, batch_size)
        newest = newest[self.begins[newest % self.capacity]]
        newest = np.resize(newest, batch_size)
        slots = newest % self.capacity
        window = newest[:, None] + np.arange(-3, 2)
        return slots, np.maximum(window, self.first[slots][:, None]) % self.capacity


class Misnamed(FrameRing):
    """Returns the right pixels of other transitions."""

    name = "misnamed"

    def drawn(self, sample):
        number, obs, next_obs = super().drawn(sample)
        return checking.Drawn(np.roll(number, 1), obs, next_obs)


class Failing(FrameRing):
    name = "failing"

    def add(self, step):
        raise RuntimeError("no room for transition 7")


class Absent(System):
    name = "absent"
    package = "absent-package"
    needs = ("no_such_module",)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("plays")


@pytest.fixture(scope="module")
def play(cache):
    """Return a few episodes of Breakout."""
    played = play_through("Breakout", 1600, cache=cache)
    assert played.terminated.sum() > 5
    return played


def test_a_play_through_is_what_the_agent_saw(play):
    ends = np.flatnonzero(play.terminated | play.truncated)
    assert len(play.frames) == len(play) + len(ends) + (not play.terminated[-1])
    obs, next_obs = play.obs(np.arange(len(play))), play.next_obs(np.arange(len(play)))
    goes_on = np.setdiff1d(np.arange(len(play) - 1), ends)
    assert (next_obs[goes_on] == obs[goes_on + 1]).all()
    assert (next_obs[:, :-1] == obs[:, 1:]).all()
    first = [0, *(ends[ends < len(play) - 1] + 1)]
    assert (obs[first] == obs[first][:, -1:]).all()  # padded by repeating
    assert any((next_obs[end] != obs[end + 1]).any() for end in ends[:-1])


@pytest.mark.parametrize("kind", [FrameRing, Delta])
def test_right_systems_are_found_right(play, kind):
    verdict = checking.check_small_ring(kind, play, 2)
    assert verdict.drawn >= 2 * checking.RING * len(checking.STAGES)
    assert (verdict.wrong_obs, verdict.wrong_next_obs) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "obs", "next_obs"),
    [
        (NoTerminalFrame, False, True),
        (NoPadding, True, True),
        (NoSeam, True, True),
        (Misnamed, True, True),
    ],
)
def test_wrong_ones_are_found_wrong(play, kind, obs, next_obs):
    verdict = checking.check_small_ring(kind, play, 4)
    assert (verdict.wrong_obs > 0, verdict.wrong_next_obs > 0) == (obs, next_obs)
    assert verdict.wrong_next_obs < verdict.drawn or kind is Misnamed


def test_a_transition_that_is_gone_counts_as_wrong(play):
    ring = FrameRing(100, play.n_actions)
    for step in steps(play, 0, 150):
        ring.add(step)
    verdict = checking.check(ring, play, range(140, 150), 256)
    assert 0 < verdict.wrong_obs < verdict.drawn


def test_systems_are_split_by_memory(monkeypatch):
    monkeypatch.setattr(bench_peers, "available_bytes", lambda: 6e9)
    kinds = list(SYSTEMS.values())
    lots = list(bench_peers.waves(kinds, bench_peers.Args()))
    assert list(itertools.chain(*lots)) == kinds
    assert [SYSTEMS["TorchRL LazyTensorStorage"]] in lots  # more than there is: alone
    assert 3 < len(lots) < len(kinds)


def test_the_benchmark_runs(tmp_path, cache, monkeypatch, capsys):
    kinds = (SYSTEMS["compressarray delta"], SYSTEMS["numpy frame ring"], Failing, Absent)
    monkeypatch.setattr(bench_peers, "SYSTEMS", {kind.name: kind for kind in kinds})
    monkeypatch.setattr("benchmarks.peers.report.SYSTEMS", bench_peers.SYSTEMS)
    args = bench_peers.Args(
        games=("Breakout", "Pong"),
        transitions=600,
        rounds=2,
        repeats=2,
        adds=8,
        draws=256,
        seam_draws=1,
        many_frames=5000,
        cache=cache,
        out=tmp_path,
    )
    assert bench_peers.main(args) == 1  # one of them failed

    printed = capsys.readouterr().out
    text = (tmp_path / "peers.md").read_text()
    assert text in printed
    assert "| absent | not installed: `pip install absent-package` |" in text
    assert "| failing | failed on Breakout: RuntimeError: no room for transition 7 |" in text
    assert (tmp_path / "peers.png").stat().st_size > 10_000

    record = json.loads((tmp_path / "peers.json").read_text())
    ours = record["systems"]["compressarray delta"]
    assert set(ours) == {"Breakout", "Pong"}
    assert set(record["systems"]["numpy frame ring"]["Breakout"]) >= {"bytes", "add", "ways"}
    assert ours["Pong"]["ways"]["kept output"]["times_as_fast_as"]["numpy frame ring"]["32"] > 0
    for game in ours.values():
        assert game["bytes"] > 0
        assert game["own_bytes"] > 0
        assert game["add"] > 0
        for ring in ("ring", "small_ring"):
            assert game[ring]["drawn"] >= 256
            assert game[ring]["wrong_obs"] == game[ring]["wrong_next_obs"] == 0
    assert record["cost_against_size"]["ratio"] > 0
