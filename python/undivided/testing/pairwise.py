"""Few rows in which every two levels of different features meet: most faults need no more than two features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

Pair = tuple[str, str]


def cover(features: Sequence[Sequence[str]], apart: Collection[Pair] = ()) -> list[tuple[str, ...]]:
    """Rows with one level of each feature; every pair that may meet does in one of them.

    Greedy: a row starts with the first pair that is missing, and each feature takes the level that brings most of the
    others. The same input gives the same rows.

    Args:
        features: the levels of each feature; no name occurs twice. The first level of a feature is its absence.
        apart: pairs of levels that cannot meet, in any order; the first levels are in none.

    Raises:
        ValueError: a name occurs twice, or `apart` names a first level or what is no level.
    """
    levels = [level for feature in features for level in feature]
    if len(set(levels)) != len(levels):
        raise ValueError(f"a level's name occurs twice: {sorted(n for n in set(levels) if levels.count(n) > 1)}")
    present = {level for feature in features for level in feature[1:]}
    if strange := {level for pair in apart for level in pair} - present:
        raise ValueError(f"{sorted(strange)} cannot be apart: only levels other than a feature's first can")
    both_ways = {*apart, *((b, a) for a, b in apart)}
    missing = dict.fromkeys(pairs(features, both_ways))  # a set that keeps its order
    rows = []
    while missing:
        row = fill(features, both_ways, missing)
        for pair in combinations(row, 2):
            missing.pop(pair, None)
        rows.append(row)
    return rows


def pairs(features: Sequence[Sequence[str]], apart: Collection[Pair]) -> list[Pair]:
    """All pairs that may meet, the earlier feature's level first; `apart` has each pair both ways."""
    crossed = [(a, b) for one, other in combinations(features, 2) for a in one for b in other]
    return [pair for pair in crossed if pair not in apart]


def fill(features: Sequence[Sequence[str]], apart: Collection[Pair], missing: Collection[Pair]) -> tuple[str, ...]:
    """A row with the first of the missing pairs and as many others as a greedy choice finds."""
    chosen = set(next(iter(missing)))
    for feature in features:
        if chosen.isdisjoint(feature):
            willing = [level for level in feature if all((level, other) not in apart for other in chosen)]
            gains = [sum((n, c) in missing or (c, n) in missing for c in chosen) for n in willing]
            chosen.add(willing[gains.index(max(gains))])
    return tuple(level for feature in features for level in feature if level in chosen)
