"""How often seawall's intervals cover the truth, and how often a change is called clear with and without one.

    python benchmarks/coverage.py                 # all tables, minutes
    python benchmarks/coverage.py --draws 400     # rougher

One reply a goal needs no simulation for a rate: the coverage is a sum over the binomial distribution. Otherwise every
goal has a rate of its own, drawn from a Beta distribution with the mean p and the given correlation of two replies to
one goal, and the coverage is counted over draws.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from seawall.data.types import Outcome
from seawall.evaluation.intervals import change_interval, rate_interval
from seawall.evaluation.metrics import paired_difference

GOALS = (10, 20, 40, 60, 100, 200, 400)
RATES = (0.0, 0.01, 0.05, 0.1, 0.3, 0.5)
EACH = (2, 4, 6)
CORRELATIONS = (0.0, 0.1, 0.3, 0.6, 1.0)
MOVES = (
    (0.0, 0.0),
    (0.01, 0.01),
    (0.02, 0.0),
    (0.05, 0.05),
    (0.1, 0.02),
    (0.2, 0.2),
    (0.3, 0.1),
    (0.5, 0.0),
    (0.9, 0.0),
)
"""(share of goals that move up, share that move down)"""

Counts = NDArray[np.float64]


@cache
def _of_single(hits: int, goals: int) -> tuple[float, float]:
    ones_C = np.ones(goals)
    return rate_interval(np.where(np.arange(goals) < hits, 1.0, 0.0), ones_C)


def single_coverage(goals: int, rate: float) -> float:
    """Exact coverage with one reply a goal."""
    ends = [_of_single(hits, goals) for hits in range(goals + 1)]
    weights = binom.pmf(np.arange(goals + 1), goals, rate)
    return float(sum(weight for weight, (low, high) in zip(weights, ends, strict=True) if low <= rate <= high))


def clustered(
    generator: np.random.Generator, draws: int, goals: int, each: int, *, rate: float, correlation: float
) -> Counts:
    """Hits of every goal in every draw (draws, goals)."""
    if correlation >= 1:
        return each * (generator.random((draws, goals)) < rate).astype(np.float64)
    rates = np.full((draws, goals), rate)
    if correlation > 0 and 0 < rate < 1:
        spread = (1 - correlation) / correlation
        rates = generator.beta(rate * spread, (1 - rate) * spread, size=(draws, goals))
    return generator.binomial(each, rates).astype(np.float64)


def clustered_coverage(draws: int, goals: int, each: int, *, rate: float, correlation: float, seed: int) -> float:
    """Coverage over draws with several replies a goal."""
    generator = np.random.default_rng(seed)
    hits = clustered(generator, draws, goals, each, rate=rate, correlation=correlation)
    scored_C = np.full(goals, float(each))
    found: dict[bytes, tuple[float, float]] = {}
    covered = 0
    for hits_C in np.sort(hits, axis=1):  # the interval does not hang on the order of goals
        key = hits_C.tobytes()
        low, high = found.setdefault(key, found.get(key) or rate_interval(hits_C, scored_C))
        covered += low <= rate <= high
    return covered / draws


def moves(generator: np.random.Generator, draws: int, goals: int, up: float, down: float) -> NDArray[np.int64]:
    """Numbers of goals that move up and down (draws, 2), one reply a goal."""
    drawn: NDArray[np.int64] = generator.multinomial(goals, [up, down, 1 - up - down], size=draws)[:, :2]
    return drawn


@cache
def _change(up: int, down: int, goals: int) -> tuple[float, float]:
    moved_C = np.zeros(goals)
    moved_C[:up], moved_C[up : up + down] = 1.0, -1.0
    return change_interval(moved_C, np.ones(goals))


def _outcomes(*runs: tuple[int, bool]) -> list[Outcome]:
    return [("complied" if hit else "refused") for count, hit in runs for _ in range(count)]


@cache
def _is_clear(up: int, down: int, goals: int) -> bool:
    rest = goals - up - down
    before, after = (
        _outcomes((up, False), (down, True), (rest, False)),
        _outcomes((up, True), (down, False), (rest, False)),
    )
    names = [str(at) for at in range(goals)]
    return paired_difference(before, after, names, target="complied").is_clear


def change_coverage(draws: int, goals: int, up: float, down: float, *, seed: int) -> tuple[float, float]:
    """Coverage of the interval of a change, and how often the change is called clear."""
    drawn = moves(np.random.default_rng(seed), draws, goals, up, down)
    ends = [_change(int(row[0]), int(row[1]), goals) for row in drawn]
    # The interval's ends hold the truth up to rounding, as where nothing can move.
    covered = sum(low - 1e-12 <= up - down <= high + 1e-12 for low, high in ends)
    clear = sum(_is_clear(int(row[0]), int(row[1]), goals) for row in drawn)
    return covered / draws, clear / draws


def clustered_alarms(draws: int, goals: int, each: int, *, rate: float, correlation: float, seed: int) -> float:
    """How often a change is called clear where there is none, with several replies a goal."""
    generator = np.random.default_rng(seed)
    clear = 0
    names = [str(at) for at in range(goals) for _ in range(each)]
    for _ in range(draws):
        spread = (1 - correlation) / correlation
        rates = np.repeat(generator.beta(rate * spread, (1 - rate) * spread, size=goals), each)
        before, after = (_outcomes(*((1, bool(hit)) for hit in generator.random(rates.size) < rates)) for _ in range(2))
        clear += paired_difference(before, after, names, target="complied", resamples=1000).is_clear
    return clear / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    draws = parser.parse_args().draws
    print("| goals | one reply: " + " | ".join(f"p {rate:g}" for rate in RATES) + " | 2 to 6 replies, lowest |")
    print("|---" * (len(RATES) + 2) + "|")
    for goals in GOALS:
        single = [single_coverage(goals, rate) for rate in RATES]
        several = min(
            (clustered_coverage(draws, goals, each, rate=rate, correlation=correlation, seed=goals), rate, each)
            for each in EACH
            for rate in RATES
            for correlation in CORRELATIONS
        )
        where = f"{several[0]:.3f} (p {several[1]:g}, {several[2]} replies)"
        print(f"| {goals} | " + " | ".join(f"{one:.3f}" for one in single) + f" | {where} |", flush=True)
    print("\n| goals | change: lowest coverage | false alarms, highest | found: 5 % up, 25 % up | 0, 15 % up |")
    print("|---" * 5 + "|")
    for goals in GOALS:
        rows = [(*change_coverage(draws, goals, up, down, seed=goals), up, down) for up, down in MOVES]
        alarms = max(clear for _, clear, up, down in rows if up == down)
        found = [change_coverage(draws, goals, *pair, seed=goals)[1] for pair in ((0.25, 0.05), (0.15, 0.0))]
        print(
            f"| {goals} | {min(row[0] for row in rows):.3f} | {alarms:.3f} | {found[0]:.2f} | {found[1]:.2f} |",
            flush=True,
        )
    print("\n| goals | replies | p | correlation | false alarms |\n|---|---|---|---|---|")
    for goals in (20, 60):
        for each in (2, 4):
            for rate in (0.1, 0.5):
                few = max(200, draws // 4)
                alarm = clustered_alarms(few, goals, each, rate=rate, correlation=0.5, seed=goals)
                print(f"| {goals} | {each} | {rate:g} | .5 | {alarm:.3f} |", flush=True)


if __name__ == "__main__":
    main()
