"""What is done to a piece of a comparison's images: scored, judged, disturbed, and asked of a judge itself.

Tensors in, tensors by name out, so that a piece travels to another process and lies in a file of a killed run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vqcortex.attribution.ensemble import scaled
from vqcortex.evaluation import ARMS
from vqcortex.evaluation.arms import score_arms
from vqcortex.evaluation.choose import arms_for, built
from vqcortex.evaluation.comparison import DROP, NONE, Figures, Measure, drop_figures
from vqcortex.evaluation.curves import Curves, measure_curves
from vqcortex.evaluation.fills import Fill, MeanCode
from vqcortex.evaluation.metrics import METRICS
from vqcortex.evaluation.metrics.agreement import RankAgreement
from vqcortex.evaluation.metrics.protocol import Score
from vqcortex.evaluation.oracle import fair_pairs, greedy_on_judge, oracle_arm
from vqcortex.pipelines.evaluate import Court, Images
from vqcortex.pipelines.levels import frequency_by_position
from vqcortex.pipelines.loaded import Loaded
from vqcortex.pipelines.methods import ENSEMBLE, MethodPlan, members_asked, method_of, score_methods

Tensors = dict[str, Tensor]
SEEDS, EXTRACTORS = "seeds", "extractors"
READ_KEPT = frozenset({"insertion_auc", "sufficiency"})
ORACLES = {"mean_code": "oracle", "each": "oracle_each_fill"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What a piece of work needs to know beside its images: small, and survives pickling.

    Args:
        court: The study, its judges and fills.
        plan: The methods.
        reseeded: The same with another seed.
        apart: The methods asked of every extractor that they can explain.
        counts: Numbers of positions hidden.
        deciding: Those that decide.
        seed: Of controls, fills and perturbations.
        batch: Images per step.
    """

    court: Court
    plan: MethodPlan
    reseeded: MethodPlan
    apart: MethodPlan
    counts: tuple[int, ...]
    deciding: tuple[int, ...]
    seed: int
    batch: int

    @property
    def methods(self) -> tuple[str, ...]:
        """Names, as asked for."""
        return tuple(self.plan.asked)

    @property
    def arms(self) -> tuple[str, ...]:
        """Methods, then controls."""
        return (*self.methods, *ARMS)


# -- judged ------------------------------------------------------------------------------------------------------------


def judge_images(part: Images, *, contest: Contest, kept: bool) -> Tensors:
    """What judges believe while each arm's positions go, and with `kept` while they stay, and how alike arms are.

    Returns:
        The tensors of `Curves` by its names; `agreement` (p, b) over pairs of arms in order, NaN where one of the two
        gives an image one score everywhere; and `constant` (a, b), 1 where an arm does.
    """
    loaded, judges = contest.court.loaded.value, contest.court.judges.value
    tokens, concept, image_ids = at_model(part, loaded)
    scores = score_methods(contest.plan, loaded, tokens, concept, image_ids)
    controls = arms_for(list(ARMS), counts=contest.court.counts.value, seed=contest.seed)
    scores |= score_arms(controls, loaded.model, tokens, concept, image_ids, batch=contest.batch)
    curves = measure_curves(
        loaded.model, judges, tokens, concept, image_ids, scores, contest.counts, contest.court.fills,
        kept=kept, batch=contest.batch,
    )  # fmt: skip
    flat = torch.stack([is_flat(one) for one in scores.values()])
    return {
        "before": curves.before, "removed": curves.removed, "empty": curves.empty,
        **({} if curves.kept is None else {"kept": curves.kept}),
        "agreement": torch.stack([alike(one, other) for one, other in combinations(scores.values(), 2)]),
        "constant": flat.to(torch.uint8),
    }  # fmt: skip


def figures_of(part: Images, made: Tensors, contest: Contest, kept: bool) -> Figures:
    """The figures per image that are read off what `judge_images` made.

    Args:
        part: The images.
        made: Of them.
        contest: What is compared.
        kept: Those that read what judges believe while positions stay; False: the others.
    """
    curves = curves_of(part, made, contest, contest.arms, contest.counts)
    values = {} if kept else drop_figures(curves, contest.deciding)
    for name, metric in metrics_of("curves"):
        if (name in READ_KEPT) == kept:
            values[Measure(name, None, metric.unit, metric.better)] = metric(curves)
    return Figures(
        arms=curves.arms, fills=curves.fills, judges=curves.judges, image_ids=curves.image_ids, values=values
    )


def curves_of(part: Images, made: Tensors, contest: Contest, arms: tuple[str, ...], counts: tuple[int, ...]) -> Curves:
    """Curves from their tensors."""
    return Curves(
        arms=arms, fills=tuple(fill.name for fill in contest.court.fills), counts=counts,
        judges=tuple(judge.name for judge in contest.court.judges.value), image_ids=part.batch.image_ids,
        positions=part.batch.tokens[0].numel(), before=made["before"], removed=made["removed"], kept=made.get("kept"),
        empty=made["empty"],
    )  # fmt: skip


# -- disturbed ---------------------------------------------------------------------------------------------------------


def steady_images(part: Images, *, contest: Contest) -> Tensors:
    """How far each method's scores stay when seed or extractor change, and the metrics that ask the extractor.

    Returns:
        METHOD/seeds and METHOD/extractors: rank correlations, (b,), NaN where there is nothing to compare; and by
        metric the values of all methods, (m, b).
    """
    loaded = contest.court.loaded.value
    tokens, concept, image_ids = at_model(part, loaded)
    maps = score_methods(contest.plan, loaded, tokens, concept, image_ids)
    again = score_methods(contest.reseeded, loaded, tokens, concept, image_ids)
    apart = score_methods(contest.apart, loaded, tokens, concept, image_ids)
    made = {f"{name}/{SEEDS}": alike(maps[name], again[name]) for name in maps}
    made |= {f"{name}/{EXTRACTORS}": _over_extractors(name, maps[name], apart, contest) for name in maps}
    fill = mean_code(contest).codes(loaded.model, [""])[0]
    for key, metric in metrics_of("method", fill=fill, seed=contest.seed):
        values = [
            metric(*_asked(name, contest, loaded), loaded.model.embed(tokens), concept, image_ids)
            for name in contest.methods
        ]
        made[key] = torch.stack(values).float().cpu()
    return made


def _asked(name: str, contest: Contest, loaded: Loaded) -> tuple[Score, nn.Module]:
    """A method with its extractor, and what it explains: that extractor, or the mean of all of an ensemble's."""
    method, module = method_of(name, contest.plan, loaded)
    members = list(members_asked(contest.plan.asked[name], loaded).values())
    return partial(method, module), Mean(members) if len(members) > 1 else module


def _over_extractors(
    name: str, scores: Float[Tensor, "b h w"], apart: dict[str, Tensor], contest: Contest
) -> Float[Tensor, " b"]:
    """Mean rank correlation with what other extractors say, or for an ensemble with what is left without one."""
    asked = contest.plan.asked[name]
    members = {key: one for key in apart if (one := contest.apart.asked[key]).method == asked.method}
    if asked.extractor == ENSEMBLE:
        each = {key: scaled(apart[key]) for key in members}
        others = [torch.stack([each[key] for key in each if key != out]).mean(0) for out in each if len(each) > 1]
    else:
        own = asked.extractor or contest.court.loaded.value.trained.extractor
        others = [apart[key] for key, one in members.items() if one.extractor != own]
    if not others:
        return torch.full((len(scores),), torch.nan)
    return torch.stack([alike(scores, other) for other in others]).mean(0)


class Mean(nn.Module):
    """The mean of several extractors' logits: what an ensemble explains."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        """Logits."""
        return torch.stack([one(embedded) for one in self.members]).mean(0)


def steady_figures(part: Images, made: Tensors, contest: Contest) -> Figures:
    """The figures of the metrics that ask the extractor, which no fill and no judge enter."""
    values = {
        Measure(name, None, metric.unit, metric.better): made[name][:, None, None]
        for name, metric in metrics_of("method")
    }
    return Figures(arms=contest.methods, fills=(NONE,), judges=(NONE,), image_ids=part.batch.image_ids, values=values)


# -- asked of a judge --------------------------------------------------------------------------------------------------


def ask_oracles(part: Images, *, contest: Contest, kind: str) -> Tensors:
    """What judges believe when the positions go that hurt one of them most, chosen greedily.

    Args:
        part: Images.
        contest: What is compared.
        kind: "mean_code": chosen once, under that fill; "each": for every fill under that fill.

    Returns:
        The tensors of `Curves` by its names, its arms the judges that were asked, its n the numbers that decide.
    """
    loaded, judges, fills = contest.court.loaded.value, contest.court.judges.value, contest.court.fills
    tokens, concept, image_ids = at_model(part, loaded)

    def chosen(fill: Fill) -> dict[str, Tensor]:
        return {
            judge.name: greedy_on_judge(
                loaded.model, judge, tokens, concept, image_ids, fill, max(contest.deciding), batch=contest.batch
            )
            for judge in judges
        }

    groups = [(chosen(fill), [fill]) for fill in fills] if kind == "each" else [(chosen(mean_code(contest)), fills)]
    found = [
        measure_curves(
            loaded.model, judges, tokens, concept, image_ids, scores, contest.deciding, some, kept=False,
            batch=contest.batch,
        )
        for scores, some in groups
    ]  # fmt: skip
    return {
        "before": found[0].before,
        "removed": torch.cat([one.removed for one in found], 1),
        "empty": torch.cat([one.empty for one in found]),
    }


def mean_code(contest: Contest) -> MeanCode:
    """The fill under which an oracle chooses unless told."""
    counts, model = contest.court.counts.value, contest.court.loaded.value.model
    return MeanCode(frequency=frequency_by_position(counts.sum(0).float(), model.levels))


def oracle_figures(part: Images, made: Tensors, contest: Contest, kind: str) -> Figures:
    """Each oracle over the judges it did not ask, and their mean: each judge judges the oracles of the others."""
    name, judges = ORACLES[kind], tuple(judge.name for judge in contest.court.judges.value)
    curves = curves_of(part, made, contest, tuple(map(oracle_arm, judges)), contest.deciding)
    unfair = ~fair_pairs(curves.arms, judges)[:, None, :, None]
    values = {}
    for measure, drops in drop_figures(curves, contest.deciding).items():
        others = drops.masked_fill(unfair, torch.nan)
        values[measure] = torch.cat([others.nanmean(0, keepdim=True), others])
    return Figures(
        arms=(name, *(f"{name}:{one}" for one in judges)), fills=curves.fills, judges=judges,
        image_ids=curves.image_ids, values=values,
    )  # fmt: skip


# -- scores ------------------------------------------------------------------------------------------------------------


def at_model(part: Images, loaded: Loaded) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Tokens and concepts where the model lives, and ids."""
    device = loaded.model.codebook.device
    return part.batch.tokens.to(device), part.batch.concept.to(device), part.batch.image_ids


def is_flat(scores: Float[Tensor, "b h w"]) -> Bool[Tensor, " b"]:
    """Images with one score everywhere."""
    return (scores.amax((1, 2)) == scores.amin((1, 2))).cpu()


def alike(one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Rank correlation of two maps of each image, NaN where one of them is flat."""
    found = RankAgreement()(one.cpu(), other.cpu())
    return found.masked_fill(is_flat(one) | is_flat(other), torch.nan)


def metrics_of(reads: str, **available: object) -> Iterator[tuple[str, Any]]:
    """Metrics that read "curves" or "method", by name, with those of the available settings that they have; the drop,
    which is read off per n, is not among them."""
    wanted = (name for name in METRICS if name != DROP and METRICS[name].reads == reads)
    return ((name, built(METRICS[name], name, **available)) for name in wanted)
