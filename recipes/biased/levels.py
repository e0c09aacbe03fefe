"""How often an audit's intervals hold the truth, with levels of sureness and without, by simulation; takes ten minutes.

    python recipes/biased/levels.py

Two groups, told apart by log-odds around +-centre with a spread of 1.4; the assumption of the correction holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqcortex.audit.rates import Rates, estimate_rates, known_answers

RUNS, DRAWS, SPREAD = 150, 400, 1.4
RATES, SIZES, CENTRES = (1.0, 0.97, 0.9, 0.5), ((60, 300), (200, 1000)), (1.6, 4.0)


def scored(groups: Tensor, centre: float, source: torch.Generator) -> Tensor:
    """Probabilities of the two groups for images of these groups."""
    odds = torch.where(groups == 0, centre, -centre)
    odds = odds + SPREAD * torch.randn(len(groups), generator=source, dtype=torch.float64)
    return torch.stack([odds, -odds], 1).div(2).softmax(1)


def simulated(rate: float, known: int, neutral: int, centre: float, runs: int = RUNS) -> list[tuple[Rates, Rates]]:
    """Estimates with levels and without, of as many audits; `known` images per group."""
    source, found = torch.Generator().manual_seed(0), []
    truth = torch.arange(2).repeat_interleave(known)
    for seed in range(runs):
        group = (torch.rand(neutral, generator=source) >= rate).long()
        answers = known_answers(scored(truth, centre, source), truth)
        counts = answers.of(scored(group, centre, source)).bincount(minlength=len(answers.counts))
        called = counts.unflatten(0, (2, -1)).sum(1)
        fine = estimate_rates(answers.counts, counts, draws=DRAWS, seed=seed)
        found.append((fine, estimate_rates(answers.confusion, called, draws=DRAWS, seed=seed)))
    return found


def main() -> None:
    """Print a line per case."""
    for rate in RATES:
        for known, neutral in SIZES:
            for centre in CENTRES:
                both = zip(*simulated(rate, known, neutral, centre), strict=True)
                said = []
                for name, some in zip(("levels", "one level"), both, strict=True):
                    hits = sum(float(one.low[0]) <= rate <= float(one.high[0]) for one in some) / len(some)
                    mean = sum(float(one.rate[0]) for one in some) / len(some)
                    said.append(f"{name}: interval holds it in {hits:.1%}, mean estimate {mean:.1%}")
                print(f"rate {rate:.0%}, {known} known per group, {neutral} neutral, +-{centre}: {'; '.join(said)}")


if __name__ == "__main__":
    main()
