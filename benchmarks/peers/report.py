"""The table, the plot and the record of what was measured."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.common import geometric_mean, machine
from benchmarks.peers import BASES, SYSTEMS
from benchmarks.peers.base import DENSE_BYTES, OBS_BYTES
from benchmarks.peers.plot import Point, plot
from benchmarks.peers.worker import BATCHES

COLUMNS = (
    "system",
    "bytes per transition",
    f"times smaller than {DENSE_BYTES:,}",
    "bytes by its own account",
    "add, us",
    *(f"sample {batch}, us" for batch in BATCHES),
    *(f"{batch}: times as fast as {base}" for base in BASES for batch in BATCHES),
    "samples with wrong pixels",
    "measured on",
)


def write(record: dict[str, Any], folder: Path, name: str) -> str:
    """Write ``name.json``, ``name.md`` and ``name.png``; return the Markdown."""
    folder.mkdir(exist_ok=True)
    packages = {kind.package.partition("[")[0] for kind in SYSTEMS.values()} | {"numpy", "torch"}
    record = {"machine": machine(), "versions": versions(packages - {""}), **record}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    points = [
        Point(label(system, way), size, us, is_wrong(games), SYSTEMS[system].package == "")
        for system, games in record["systems"].items()
        for way in ways(games)
        if (size := mean(games, "bytes")) and (us := mean(games, "ways", way, "us", "32"))
    ]
    subtitle = f"{record['machine']}; geometric means over {len(record['settings']['games'])} games"
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
    lines = [
        "# Replay buffers beside each other",
        "",
        f"Made by `make bench` in {record['minutes']:.0f} minutes on {record['machine']}.",
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
        for way in ways(games):
            lines.append(f"| {' | '.join([label(name, way), *cells(games, way)])} |")
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
        f"thread, all others idle: {settings['repeats']} batches of each size in a turn (medians "
        f"over all), then {settings['adds']} transitions added (median of the turns' means). "
        f"Ratios are against `{dense}` (its dense buffer) and `{ring}`, {BASES[ring]}, "
        f"in the same rounds; both hold {settings['transitions']:,} transitions of "
        f"{record['fixed_game']}. Over several games means are geometric.",
        "",
        f"Pixels: {settings['draws']:,} transitions of each full ring, and a ring of 1,024 drawn "
        "twelve times over at five positions of its seam, compared bit for bit with what the "
        "agent saw. Shares are of the full rings' draws. Episodes are padded with their first "
        "frame; their ends are terminations of random play, and wrong `next_obs` there does no "
        "harm where a learner masks it, as it may not after a truncation.",
        "",
        f"Where it says one game, neither size nor time depends on the pixels. Rings of "
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
    timed = [mean(games, "ways", way, "us", str(batch)) for batch in BATCHES]
    ratios = [
        mean(games, "ways", way, "times_as_fast_as", base, str(batch))
        for base in BASES
        for batch in BATCHES
    ]
    filled = [(game, entry["capacity"]) for game, entry in games.items() if "capacity" in entry]
    where = filled[0][0] if len(filled) == 1 else f"{len(filled)} games"
    return [
        figure(size, 0),
        figure(size and DENSE_BYTES / size, 1),
        figure(own, 0),
        figure(add, 1),
        *(figure(us, 0) for us in timed),
        *(figure(ratio, 2) for ratio in ratios),
        verdict(games),
        f"{where}, ring of {filled[0][1]:,}",
    ]


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
