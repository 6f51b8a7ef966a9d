"""Two result files: which rows changed by more than the noise.

Noise is measured, not chosen. Providers that are not ours and have the same version in both files did not change, so
what their times seem to have changed by is the machine's doing. Samples of a case are interleaved, so that whatever
slowed the peers slowed everybody in it: a row's change is taken beside that of the unchanged peers of its own case,
and, because a single peer may itself have had a bad moment, beside that of all of them too. How far such peers differ
from one another is the noise that remains. And within a run, ranges from p20 to p80 that overlap are no change.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .clock import quantile
from .rows import Malformed, Row, read_csv

Block = tuple[str, str, str]  # op, case, mode


@dataclass(frozen=True)
class Change:
    """One row that both files have. `factor` is the new median over the old one, `beside` the same over the peers'."""

    old: Row
    new: Row
    factor: float
    beside: float
    verdict: str  # "faster", "slower" or "" within the noise


@dataclass(frozen=True)
class Comparison:
    """`drift`: the median factor of the unchanged peers. `noise`: the factor, both ways, that nine of ten of them stay
    within beside one another; 1 where there are none. `unmoved`: how many they are."""

    changes: tuple[Change, ...]
    drift: float
    noise: float
    unmoved: int
    only_old: int
    only_new: int
    warnings: tuple[str, ...]

    @property
    def worst_ratio(self) -> float:
        """The largest factor between the old and the new ratio of a row of ours; NaN where no row has both."""
        factors = [
            max(one.new.ratio / one.old.ratio, one.old.ratio / one.new.ratio)
            for one in self.changes
            if one.new.ours and math.isfinite(one.new.ratio) and math.isfinite(one.old.ratio)
        ]
        return max(factors, default=math.nan)


def compare(old: Sequence[Row], new: Sequence[Row]) -> Comparison:
    before = {row.key: row for row in old if row.timed}
    after = {row.key: row for row in new if row.timed}
    pairs = [(before[key], after[key]) for key in before if key in after]
    peers: dict[Block, list[float]] = {}
    for a, b in pairs:
        if not a.ours and a.version == b.version:
            peers.setdefault(block_of(a), []).append(b.median / a.median)
    everywhere = [factor for factors in peers.values() for factor in factors]
    drift = statistics.median(everywhere) if everywhere else 1.0
    noise = noise_of(list(peers.values()), drift)
    drifts = {block: statistics.median(factors) for block, factors in peers.items()}
    changes = tuple(change(a, b, drifts.get(block_of(a), drift), drift, noise) for a, b in pairs)
    only_old, only_new = len(before.keys() - after.keys()), len(after.keys() - before.keys())
    return Comparison(changes, drift, noise, len(everywhere), only_old, only_new, tuple(remarks(old, new)))


def block_of(row: Row) -> Block:
    return row.op, row.case, row.mode


def noise_of(blocks: Sequence[Sequence[float]], drift: float) -> float:
    """How far an unchanged peer is from the others of its case; where no case has two of them, from all."""
    apart = [
        abs(math.log(factor / statistics.median([*factors[:i], *factors[i + 1 :]])))
        for factors in blocks
        if len(factors) > 1
        for i, factor in enumerate(factors)
    ]
    apart = apart or [abs(math.log(factor / drift)) for factors in blocks for factor in factors]
    return math.exp(quantile(apart, 0.9)) if apart else 1.0


def change(old: Row, new: Row, local: float, drift: float, noise: float) -> Change:
    """local, drift: the factors of the unchanged peers of the case, and of all. Slower or faster when the ranges are
    apart and the change is more than unchanged peers show, beside both."""
    factor = new.median / old.median
    slower = all(new.p20 / moved > old.p80 and factor / moved > noise for moved in (local, drift))
    faster = all(new.p80 / moved < old.p20 and factor / moved * noise < 1 for moved in (local, drift))
    return Change(old, new, factor, factor / local, "slower" if slower else "faster" if faster else "")


def remarks(old: Sequence[Row], new: Sequence[Row]) -> Iterator[str]:
    for name in ("device", "threads", "torch"):
        a, b = ({str(getattr(row, name)) for row in rows if row.timed} for rows in (old, new))
        if a != b:
            yield f"the {name} differs: {', '.join(sorted(a)) or 'none'} and {', '.join(sorted(b)) or 'none'}"


def read_results(path: Path) -> list[Row]:
    """The rows of one file, or of every result file of a folder.

    Raises:
        FileNotFoundError: nothing is there. Malformed: a file is no result of a benchmark.
    """
    if not path.is_dir():
        return read_csv(path)
    rows: list[Row] = []
    for file in sorted(path.glob("*.csv")):
        try:
            rows += read_csv(file)
        except Malformed:
            if file.name.split(".")[0] in known_ops():
                raise  # another kind of table may lie in the folder, a broken one of ours is an error
    if not rows:
        raise FileNotFoundError(f"{path} holds no result of a benchmark (*.csv)")
    return rows


def known_ops() -> tuple[str, ...]:
    """Their names, in the order in which they are shown; of every op, whether this version has it or not."""
    from .suite import ALL

    return tuple(op.name for op in ALL)
