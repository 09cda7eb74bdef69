"""Files of configurations: how many there are in one, and which one an index names.

Two forms, told apart by what is in them and not by the file's name alone:

- JSON as MeDQN has it (`qlan3/MeDQN: configs/*.json, utils/sweeper.py`): a dict whose values are
  lists of choices. A choice may be a dict of the same kind, whose combinations count one by one:
  this is how parameters depend on one another.
- YAML as the paper on compressed observations has it (`A2R-Lab/DiffCompressDRL:
  atari_compress/cfgs`): ``alg``, ``env``, ``seeds``, ``compress``; here the first, second and
  fourth may be lists, too. ``env`` changes fastest, then ``compress``, then ``alg``.

Indices begin at 1. Of N configurations, index i names number ``(i - 1) % N``, the first key
changing fastest, and is its run number ``(i - 1) // N``: the same settings with another seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


class ConfigurationError(Exception):
    """A file of configurations, an index or an override that cannot be used; one line says why."""


@dataclass(frozen=True)
class Configuration:
    """One entry of a sweep.

    Attributes
    ----------
    index : int
        As it was asked for, from 1 on.
    number : int
        Which of the N combinations, from 1 on.
    run : int
        How often these settings were named before by lower indices, from 0 on.
    values : dict
        Nested as in the file, one choice for each key.
    """

    index: int
    number: int
    run: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """All configurations of one file.

    Attributes
    ----------
    name : str
        The file's, without its ending: the experiment's.
    form : {"medqn", "paper"}
    tree : dict
        Values are lists of choices; choices may be such dicts.
    """

    name: str
    form: str
    tree: dict[str, list[Any]]

    def __len__(self) -> int:
        return count_dict(self.tree)

    def __getitem__(self, index: int) -> Configuration:
        if index < 1:
            raise ConfigurationError(
                f"index {index} must be at least 1: the first of {self.name}'s {len(self)} "
                f"configurations is 1, and {len(self) + 1} is its second run"
            )
        run, place = divmod(index - 1, len(self))
        return Configuration(index, place + 1, run, choose_from_dict(self.tree, place))


def count_dict(tree: dict[str, list[Any]]) -> int:
    """Return how many combinations a dict of lists has: the product over its keys."""
    product = 1
    for choices in tree.values():
        product *= count_list(choices)
    return product


def count_list(choices: list[Any]) -> int:
    """Return how many combinations a list of choices has: the sum over them."""
    return sum(count_dict(each) if isinstance(each, dict) else 1 for each in choices)


def choose_from_dict(tree: dict[str, list[Any]], place: int) -> dict[str, Any]:
    """Return combination number `place`, from 0 on; the first key changes fastest."""
    chosen = {}
    for key, choices in tree.items():
        place, rest = divmod(place, count_list(choices))
        chosen[key] = choose_from_list(choices, rest)
    return chosen


def choose_from_list(choices: list[Any], place: int) -> Any:
    """Return choice number `place`, from 0 on; a dict among them has as many as combinations."""
    for each in choices:
        size = count_dict(each) if isinstance(each, dict) else 1
        if place < size:
            return choose_from_dict(each, place) if isinstance(each, dict) else each
        place -= size
    raise IndexError(place)


def flatten(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts, under their keys joined by ``/``."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def load_sweep(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[Sweep, dict]:
    """Read a file of configurations.

    Parameters
    ----------
    path : Path
    overrides : list of str
        ``key=value`` with a value in YAML; a list sweeps over it. A key of the file (nested ones
        joined by ``.``) is replaced in it; of others a list is added, a value left for the script.

    Returns
    -------
    Sweep
    dict
        The overrides that no key of the file answers to.

    Raises
    ------
    ConfigurationError
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    tree = parse_json(path, text) if path.suffix == ".json" else parse_yaml(path, text)
    form = "paper" if "alg" in tree else "medqn"
    if form == "paper":
        tree = listed(path, tree)
    check_tree(path, tree)
    left = {}
    for override in overrides:
        key, value = parse_override(override)
        if replace(tree, key.split("."), value):
            continue
        if isinstance(value, list):
            tree[key] = value  # the slowest to change
        else:
            left[key] = value
    check_tree(path, tree)
    check_seeds(path, tree)
    return Sweep(path.stem, form, tree), left


def parse_json(path: Path, text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text, object_pairs_hook=lambda pairs: unique(path, pairs))
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path}: a dict of lists is needed, not a {type(tree).__name__}")
    return tree


def unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict, or refuse a key that stands in it twice, of which json would keep the last."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigurationError(f"{path}: the key {key!r} stands twice in one dict")
    return dict(pairs)


def parse_yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        loaded = OmegaConf.create(text)
        tree = OmegaConf.to_container(loaded, resolve=True)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise ConfigurationError(f"{path}{place}: {problem}") from error
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict) or any(not isinstance(key, str) for key in tree):
        raise ConfigurationError(f"{path}: keys and values are needed, as in 'alg: PPO'")
    return tree


PAPER_KEYS = ("alg", "env", "seeds", "compress")


def listed(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Bring the paper's form to that of lists: what it may sweep over stands first."""
    missing = [key for key in PAPER_KEYS if key not in tree]
    if missing:
        raise ConfigurationError(
            f"{path}: it has no {missing[0]!r}; {', '.join(PAPER_KEYS)} must be"
        )
    swept = {
        key: value if isinstance(value := tree[key], list) else [value]
        for key in ("env", "compress", "alg")
    }
    return swept | {key: as_choices(value) for key, value in tree.items() if key not in swept}


def as_choices(value: Any) -> list[Any]:
    """One choice; of a section such as ``eval``, each of its values becomes one."""
    if isinstance(value, dict):
        return [{key: as_choices(inner) for key, inner in value.items()}]
    return [value]


def check_seeds(path: Path, tree: dict[str, list[Any]]) -> None:
    for seeds in tree.get("seeds", ()):
        if not isinstance(seeds, list) or not seeds or any(type(s) is not int for s in seeds):
            raise ConfigurationError(
                f"{path}: seeds {seeds!r} must be a list of whole numbers, as in [0, 1]"
            )


def check_tree(path: Path, tree: dict[str, Any], above: str = "") -> None:
    """Refuse what is no dict of lists of choices, naming the key."""
    for key, choices in tree.items():
        name = above + key
        if not isinstance(choices, list):
            raise ConfigurationError(
                f"{path}: {name} is {choices!r}, and must be a list of values, as in [{choices!r}]"
            )
        if not choices:
            raise ConfigurationError(f"{path}: {name} is an empty list: nothing would be run")
        for choice in choices:
            if isinstance(choice, dict):
                check_tree(path, choice, f"{name}/")


def parse_override(override: str) -> tuple[str, Any]:
    """Take ``key=value`` apart; the value is YAML's."""
    key, equals, _ = override.partition("=")
    if not equals or not key.strip("-"):
        raise ConfigurationError(
            f"{override!r} must be key=value, for example total_timesteps=1000"
        )
    try:
        parsed = OmegaConf.to_container(
            OmegaConf.from_dotlist([f"value={override[len(key) + 1 :]}"])
        )
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigurationError(f"{override!r}: {str(error).splitlines()[0]}") from error
    return key.lstrip("-").replace("-", "_"), parsed["value"]


def replace(tree: dict[str, Any], keys: list[str], value: Any) -> int:
    """Put a value in the place of a key's choices; returns in how many places it stood."""
    key, *inner = keys
    if key not in tree:
        return 0
    if inner:
        return sum(replace(each, inner, value) for each in tree[key] if isinstance(each, dict))
    swept_list = isinstance(value, list) and key != "seeds"
    tree[key] = value if swept_list else [value]
    return 1


def seed_of(configuration: Configuration) -> int:
    """The seed of a run: the same at every call, and another for each run of one configuration.

    ``seeds`` lists them, one for each run. ``generate_random_seed`` draws one for each index, from
    ``seed`` and the index; without it runs count upwards from ``seed``.

    Raises
    ------
    ConfigurationError
        If ``seeds`` has none for this run.
    """
    values = configuration.values
    if "seeds" in values:
        seeds = values["seeds"]
        if configuration.run >= len(seeds):
            raise ConfigurationError(
                f"index {configuration.index} is run {configuration.run + 1} of its configuration, "
                f"and there are {len(seeds)} seeds; add seeds, or name a lower index"
            )
        return int(seeds[configuration.run])
    base = int(values.get("seed", 1))
    if values.get("generate_random_seed", False):
        return int(np.random.default_rng([base, configuration.index]).integers(1_000_000))
    return base + configuration.run
