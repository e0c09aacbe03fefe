"""What every metric owes its caller, asked of every name: above all, who is better comes out better.

The world: concept i of the toy is "much of colour i". The judge is the share of pixels of a colour, the extractor
counts the codes of a colour; so the positions that matter are those of the concept's colour, and no others do.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError
from vqcortex.evaluation.curves import measure_curves
from vqcortex.evaluation.fills import Black
from vqcortex.evaluation.metrics import METRICS
from vqcortex.evaluation.metrics.protocol import CurveMetric, MapMetric, MaskMetric, MethodMetric, Metric
from vqcortex.seeds import generator_for

TOY = ToyAdapter(grid=(3, 4))
IDS = [f"image-{i}" for i in range(8)]
CONCEPT = torch.tensor([1, 2, 3, 4, 5, 6, 7, 4])  # not black: its loss would not show under the black fill
TOKENS = TOY.generate(CONCEPT, IDS, seed=5)
EMBEDDED = TOY.embed(TOKENS)
TRUTH = CONCEPT[:, None, None] == TOKENS
SHAPES = {"curves": CurveMetric, "method": MethodMetric, "maps": MapMetric, "mask": MaskMetric}
EXPLAINERS = ("perfect", "random", "constant", "inverted")


@dataclass(frozen=True)
class Share:
    """Probability of a colour: the share of the pixels nearest to it."""

    name: str = "share"

    def __call__(self, pixels):
        away = (pixels[:, None] - TOY.codebook[None, :, :, None, None]).square().sum(2)
        return nn.functional.one_hot(away.argmin(1), 8).float().mean((1, 2)).log()


class Counter(nn.Module):
    """Logit of a colour: how many positions hold its code."""

    def forward(self, embedded):
        away = (embedded[:, None] - TOY.codebook[None, :, :, None, None]).square().sum(2)
        return (away < 0.01).float().sum((2, 3))


def explain(explainer, embedded, concept, image_ids):
    """A map of the name; "random" is another one each time it is asked, as one that depends on nothing is."""
    near = (embedded - TOY.codebook[concept][:, :, None, None]).square().sum(1)
    perfect = torch.exp(-8 * near)
    if explainer == "random":
        seen = zip(image_ids, embedded.sum((1, 2, 3)).tolist(), strict=True)
        return torch.stack([torch.rand(3, 4, generator=generator_for(0, name, round(at, 4))) for name, at in seen])
    return {"perfect": perfect, "constant": torch.ones_like(perfect), "inverted": -perfect}[explainer]


# A tenth of 12 positions is but one, and a fiftieth of the range hardly moves a map.
SETTINGS = {"top_overlap": {"share": 1 / 3}, "max_sensitivity": {"radius": 0.1}}


def values(name, explainer, rows=slice(None)):
    """The metric's value for each image, (b,)."""
    metric = METRICS[name](**SETTINGS.get(name, {}))
    tokens, concept, ids = TOKENS[rows], CONCEPT[rows], IDS[rows]
    maps = explain(explainer, EMBEDDED[rows], concept, ids)
    if metric.reads == "curves":
        counts = range(1, 13)
        return metric(measure_curves(TOY, [Share()], tokens, concept, ids, {"x": maps}, counts, [Black()]))[0, 0, 0]
    if metric.reads == "method":
        return metric(lambda *asked: explain(explainer, *asked), Counter(), EMBEDDED[rows], concept, ids)
    truth = explain("perfect", EMBEDDED[rows], concept, ids) if metric.reads == "maps" else TRUTH[rows]
    return metric(maps, truth)


# From best to worst; those in one bracket need not be told apart.
ORDER = {name: [["perfect"], ["random", "constant"], ["inverted"]] for name in METRICS} | {
    # How much a map moves says nothing of whether it is right: a constant one cannot move at all.
    "max_sensitivity": [["constant"], ["perfect", "inverted"], ["random"]],
}


@pytest.mark.parametrize("name", sorted(METRICS))
def test_explainers_come_out_in_the_right_order(name):
    sign = 1 if METRICS[name].better == "higher" else -1
    mean = {one: sign * values(name, one).double().mean().item() for one in EXPLAINERS}
    for above, below in zip(ORDER[name], ORDER[name][1:], strict=False):
        assert min(mean[one] for one in above) > max(mean[one] for one in below) + 0.01, mean


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_says_what_it_reads_and_how_it_is_read(name):
    metric = METRICS[name]()
    assert isinstance(metric, Metric)
    assert isinstance(metric, SHAPES[metric.reads])
    assert metric.better in ("higher", "lower")
    assert metric.unit
    assert any(letter.isdigit() for letter in metric.source)  # a year


@pytest.mark.parametrize("name", sorted(METRICS))
def test_settings_are_frozen_and_compare_by_value(name):
    assert METRICS[name]() == METRICS[name]()
    assert METRICS[name].__dataclass_params__.frozen


@pytest.mark.parametrize("name", sorted(METRICS))
def test_company_and_order_change_nothing(name):
    together = values(name, "random")
    assert together.shape == (8,)
    assert together.dtype == torch.float32
    for i in (5, 0):
        torch.testing.assert_close(values(name, "random", slice(i, i + 1))[0], together[i])


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].reads != "curves"])
def test_nan_is_no_explanation(name):
    metric, nan = METRICS[name](), torch.full((8, 3, 4), torch.nan)
    asked = {
        "method": (lambda *_: nan, Counter(), EMBEDDED, CONCEPT, IDS),
        "maps": (nan, TRUTH.float()),
        "mask": (nan, TRUTH),
    }
    with pytest.raises(ConfigError, match="maps hold NaN"):
        metric(*asked[metric.reads])


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].reads == "method"])
def test_no_graph_is_kept_of_a_method_that_is_asked(name):
    wanted = EMBEDDED.clone().requires_grad_(True)
    found = METRICS[name]()(lambda e, c, i: e.sum(1), Counter(), wanted, CONCEPT, IDS)
    assert not found.requires_grad
