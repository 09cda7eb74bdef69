"""The table, the plot and the record of what was measured."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.common import geometric_mean, machine
from benchmarks.peers import BASES, SYSTEMS
from benchmarks.peers.base import DENSE_BYTES, OBS_BYTES
from benchmarks.peers.checking import RING, STAGES
from benchmarks.peers.plot import Point, plot
from benchmarks.peers.worker import BATCHES

BOTH = " / ".join(map(str, BATCHES))
COLUMNS = (
    "system",
    "bytes per transition",
    f"times smaller than {DENSE_BYTES:,}",
    "bytes by its own account",
    "add, us",
    f"sample {BOTH}, us",
    *(f"times as fast as {base}, {BOTH}" for base in BASES),
    "samples with wrong pixels",
    "measured on",
)
# Of ours, each game by itself.
BY_GAME = (("compressarray delta", ""), ("compressarray delta-huffman", ""))


def write(record: dict[str, Any], folder: Path, name: str) -> str:
    """Write ``name.json``, ``name.md`` and ``name.png``; return the Markdown."""
    folder.mkdir(exist_ok=True)
    packages = {kind.package.partition("[")[0] for kind in SYSTEMS.values()} | {"numpy", "torch"}
    record = {"machine": machine(), "versions": versions(packages - {""}), **record}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    points = [
        Point(label(system, way), size, us, is_wrong(games), system.startswith("compressarray"))
        for system, games in record["systems"].items()
        for way in ways(games)
        if way != "2 threads"  # which are for batches of 256
        if (size := mean(games, "bytes")) and (us := mean(games, "ways", way, "us", "32"))
    ]
    games = record["settings"]["games"]
    over = games[0] if len(games) == 1 else f"geometric means over {len(games)} games"
    subtitle = f"{record['machine']}; {over}"
    plot(points, subtitle, folder / f"{name}.png")
    text = markdown(record, f"{name}.png")
    (folder / f"{name}.md").write_text(text)
    return text


def versions(packages: set[str]) -> dict[str, str]:
    found = {}
    for package in sorted(packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def markdown(record: dict[str, Any], picture: str) -> str:
    settings, systems = record["settings"], record["systems"]
    given = record["flags"] and f' BENCH_ARGS="{record["flags"]}"'
    lines = [
        "# Replay buffers beside each other",
        "",
        f"Made by `make bench{given}` in {record['minutes']:.0f} minutes on {record['machine']}.",
        "",
        f"![bytes per transition against microseconds to sample]({picture})",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, kind in SYSTEMS.items():
        if name in record["not_installed"]:
            lines.append(f"| {name} | not installed: `pip install {kind.package}` |")
            continue
        if name in record["failed"]:
            lines.append(f"| {name} | {record['failed'][name]} |")
        games = systems.get(name, {})
        rows = ([label(name, way), *cells(games, way)] for way in ways(games))
        lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += by_game(systems)
    dense, ring = BASES
    lines += [
        "",
        f"Dense is `obs` and `next_obs` as gray stacks of 4 frames of 84x84: 2 x {OBS_BYTES:,} = "
        f"{DENSE_BYTES:,} bytes. Bytes are what a fresh process's resident memory (less what is "
        "mapped from files) grew by until its ring was full and an eighth of it written again, "
        "per transition that can be drawn; actions, rewards and ends included.",
        "",
        f"Sampling returns `obs` and `next_obs` of random transitions and what belongs to them. "
        f"{settings['rounds']} rounds in random order, each system in its own process, one "
        f"thread, all others idle: {settings['repeats']} batches of each size and way in a turn, "
        "these in random order too (medians over all), then "
        f"{settings['adds']} transitions added (median of the turns' means). "
        f"Ratios are against `{dense}` and `{ring}`, {BASES[ring]}, in the "
        f"same rounds; both hold {settings['transitions']:,} transitions of the same game, which "
        "a random policy plays that keeps to an action for four steps in the mean. Over several "
        "games means are geometric. A row without a word after the name of ours is `sample(n)`; "
        "`kept output` is `sample(n, out=batch)`, and `2 threads` the same with two, as are the "
        "default where there are two cores. "
        "compressarray and the blosc2 ring hand out `obs` and `next_obs` as overlapping views of "
        "the five frames that they have in common, as the numpy ring's last row does.",
        "",
        f"Pixels: {settings['draws']:,} transitions of each full ring, and a ring of {RING} drawn "
        f"{settings['seam_draws']} times over at {len(STAGES)} positions of its seam, compared "
        "bit for bit with what the agent saw. Shares are of the full rings' draws. Episodes are "
        "padded with their first frame; their ends are terminations of random play, and a wrong "
        "`next_obs` there does no harm where a learner masks it, as it may not after a truncation.",
        "",
        f"One game is measured of systems that return wrong pixels; neither their size nor their "
        "time depends on these. Rings of "
        f"{min(settings['slow_transitions'], settings['transitions']):,} are of systems that "
        "compress one by one in Python.",
    ]
    if scale := record["cost_against_size"]:
        (few, many), (us_few, us_many) = scale["frames"], scale["us"]
        lines += [
            "",
            f"Cost against size, `delta`: 32 stacks from {many:,} frames of {scale['game']} (the "
            f"play-through of {settings['transitions_played']:,} transitions over and over) take "
            f"{us_many:,.1f} us, from {few:,} {us_few:,.1f} us: {scale['ratio']:.2f} times.",
        ]
    named = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return "\n".join([*lines, "", f"Versions: {named}."]) + "\n"


def label(name: str, way: str) -> str:
    return f"{name}, {way}" if way else name


def ways(games: dict[str, Any]) -> list[str]:
    return list(next((game["ways"] for game in games.values() if "ways" in game), ()))


def mean(games: dict[str, Any], *keys: str) -> float | None:
    """Geometric mean over those games that have it."""
    found = []
    for game in games.values():
        value: Any = game
        for key in keys:
            value = (value or {}).get(key)
        if value is not None:
            found.append(value)
    return geometric_mean(found) if found else None


def cells(games: dict[str, Any], way: str) -> list[str]:
    size, own, add = (mean(games, what) for what in ("bytes", "own_bytes", "add"))
    filled = [(game, entry["capacity"]) for game, entry in games.items() if "capacity" in entry]
    where = filled[0][0] if len(filled) == 1 else f"{len(filled)} games"
    return [
        figure(size, 0),
        figure(size and DENSE_BYTES / size, 1),
        figure(own, 0),
        figure(add, 1),
        both(games, 0, "ways", way, "us"),
        *(both(games, 2, "ways", way, "times_as_fast_as", base) for base in BASES),
        verdict(games),
        f"{where}, ring of {filled[0][1]:,}",
    ]


def both(games: dict[str, Any], digits: int, *keys: str) -> str:
    """Show what there is for each size of batch."""
    return " / ".join(figure(mean(games, *keys, str(batch)), digits) for batch in BATCHES)


def by_game(systems: dict[str, Any]) -> list[str]:
    """Return a table of ours, game by game."""
    shown = [(name, way) for name, way in BY_GAME if name in systems]
    if not shown:
        return []
    columns = ["game"]
    for name, way in shown:
        columns += [f"{label(name, way)}: times smaller than {DENSE_BYTES:,}"]
        columns += [f"times as fast as {base}, {BOTH}" for base in BASES]
    lines = ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for game in systems[shown[0][0]]:
        row = [game]
        for name, way in shown:
            alone = {game: systems[name].get(game, {})}
            size = mean(alone, "bytes")
            row.append(figure(size and DENSE_BYTES / size, 1))
            row += [both(alone, 2, "ways", way, "times_as_fast_as", base) for base in BASES]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def shares(games: dict[str, Any], ring: str) -> dict[str, float]:
    verdicts = [game[ring] for game in games.values() if ring in game]
    drawn = sum(each["drawn"] for each in verdicts)
    return {
        what: sum(each[f"wrong_{what}"] for each in verdicts) / drawn
        for what in ("obs", "next_obs")
    }


def is_wrong(games: dict[str, Any]) -> bool:
    return any(any(shares(games, ring).values()) for ring in ("ring", "small_ring"))


def verdict(games: dict[str, Any]) -> str:
    """Say which share of samples is wrong, of the small ring's where the full ring's were right."""
    full, small = (shares(games, ring) for ring in ("ring", "small_ring"))
    parts = []
    for what in full:
        if full[what]:
            parts.append(f"{what} {100 * full[what]:.2g} %")
        elif small[what]:
            parts.append(f"{what} only in the small ring, {100 * small[what]:.2g} %")
    return ", ".join(parts) or "none"
