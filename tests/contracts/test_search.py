"""What every registered search strategy owes its caller."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError
from vqcortex.search import SEARCHES, make_search
from vqcortex.search.protocol import Search

TOY = ToyAdapter()
IDS = ["a", "b", "c"]
QUICK = {"steps": 25, "rate": 0.1, "restarts": 2, "record_every": 10, "seed": 5}
GRADIENT = [name for name in sorted(SEARCHES) if name != "random_codes"]


class Colours(nn.Module):
    """Logit of a colour: how much of the grid lies near it. Two weights, so that flags can be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(12.0))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        away = (embedded[:, None] - TOY.codebook[None, :, :, None, None]).square().sum(2)  # (b, c, h, w)
        near = torch.exp(-2 * away) + 0 * self.norm(embedded[:, :1])
        return self.scale * near.mean((2, 3))


@pytest.fixture
def extractor() -> nn.Module:
    return Colours().eval()


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    tokens = TOY.generate(torch.tensor([0, 3, 6]), IDS, seed=0)
    free = torch.zeros(4, 4, dtype=torch.bool)
    free[1:3, 1:4] = True
    return tokens, free, torch.tensor([7, 1, 2])


def run(name, extractor, case, ids=IDS, **settings):
    tokens, free, target = case
    return make_search(name, **{**QUICK, **settings})(extractor, TOY.codebook, tokens, free, target, ids)


@pytest.mark.parametrize("name", sorted(SEARCHES))
class TestEveryStrategy:
    def test_it_speaks_the_protocol_and_signs_its_trace(self, name, extractor, case):
        tokens, free, target = case
        trace = run(name, extractor, case)
        assert isinstance(make_search(name), Search)
        assert trace.strategy == make_search(name).name == name
        assert trace.tokens.shape == (3, 2, 4, 4)
        assert torch.equal(trace.start, tokens)
        assert torch.equal(trace.free, free)
        assert torch.equal(trace.target, target)

    def test_the_probability_it_reports_is_that_of_its_grids(self, name, extractor, case):
        _, _, target = case
        trace = run(name, extractor, case)
        assert trace.probability.shape == (len(trace.steps), 3, 2)
        logits = extractor(TOY.embed(trace.tokens.flatten(0, 1)))
        chance = logits.softmax(1).gather(1, target.repeat_interleave(2)[:, None]).view(3, 2)
        torch.testing.assert_close(trace.probability[-1], chance.detach())

    def test_frozen_positions_never_change(self, name, extractor, case):
        tokens, free, _ = case
        found = run(name, extractor, case).tokens
        assert torch.equal(found[:, :, ~free], tokens[:, None, ~free].expand(3, 2, -1))
        assert not torch.equal(found[:, :, free], tokens[:, None, free].expand(3, 2, -1))

    @pytest.mark.parametrize("start", ["image", "mean", "random"])
    def test_only_live_codes_are_used(self, name, start, extractor, case):
        tokens, _, target = case
        alive = torch.tensor([False, True, True, False, True, False, False, True])
        everywhere = (tokens, torch.ones(4, 4, dtype=torch.bool), target)
        found = run(name, extractor, everywhere, alive=alive, start=start).tokens
        assert alive[found].all()

    def test_company_and_order_change_nothing(self, name, extractor, case):
        tokens, free, target = case
        together = run(name, extractor, case).tokens
        for i in range(3):
            alone = run(name, extractor, (tokens[[i]], free, target[[i]]), [IDS[i]]).tokens
            assert torch.equal(alone[0], together[i])
        turned = run(name, extractor, (tokens.flip(0), free, target.flip(0)), IDS[::-1]).tokens
        assert torch.equal(turned.flip(0), together)

    def test_the_batch_knob_changes_nothing(self, name, extractor, case):
        whole, pieces = run(name, extractor, case), run(name, extractor, case, batch=4)
        assert torch.equal(whole.tokens, pieces.tokens)
        torch.testing.assert_close(whole.probability, pieces.probability)

    def test_more_restarts_leave_the_first_ones_alone(self, name, extractor, case):
        two, three = run(name, extractor, case), run(name, extractor, case, restarts=3)
        assert torch.equal(three.tokens[:, :2], two.tokens)

    def test_the_same_call_gives_the_same_result_whatever_the_global_state(self, name, extractor, case):
        torch.manual_seed(1)
        first = run(name, extractor, case)
        torch.manual_seed(2)
        again = run(name, extractor, case)
        assert torch.equal(first.tokens, again.tokens)
        assert torch.equal(first.probability, again.probability)

    def test_inputs_and_extractor_come_back_as_they_were(self, name, extractor, case):
        tokens = case[0]
        before = tokens.clone()
        extractor.train()
        extractor.norm.eval()
        extractor.scale.requires_grad_(False)
        state = {key: value.clone() for key, value in extractor.state_dict().items()}
        run(name, extractor, case)
        assert torch.equal(tokens, before)
        assert [module.training for module in extractor.modules()] == [True, False]
        assert [weight.requires_grad for weight in extractor.parameters()] == [False, True, True]
        assert all(weight.grad is None for weight in extractor.parameters())
        assert all(torch.equal(value, state[key]) for key, value in extractor.state_dict().items())

    def test_a_search_from_scratch_over_the_whole_grid_runs(self, name, extractor, case):
        tokens, _, target = case
        everywhere = (torch.zeros_like(tokens), torch.ones(4, 4, dtype=torch.bool), target)
        trace = run(name, extractor, everywhere, start="mean")
        assert trace.free.all()
        assert trace.tokens.unique().numel() > 1

    def test_mistakes_are_named(self, name, extractor, case):
        tokens, free, target = case
        with pytest.raises(ConfigError, match="the free region holds no position"):
            run(name, extractor, (tokens, torch.zeros_like(free), target))
        with pytest.raises(ShapeError, match=r"free region has shape \(3, 4\) but the grids are \(4, 4\)"):
            run(name, extractor, (tokens, free[:3], target))
        with pytest.raises(ShapeError, match="3 grids came with 2 targets and 3 image ids"):
            run(name, extractor, (tokens, free, target[:2]))
        with pytest.raises(ShapeError, match="3 grids came with 3 targets and 1 image ids"):
            run(name, extractor, case, ["a"])
        with pytest.raises(TokenError, match=r"tokens span \[\d, 10\] but this codebook holds indices \[0, 7\]"):
            run(name, extractor, (tokens + 3, free, target))
        for wrong in (-1, 8):
            with pytest.raises(ConfigError, match=f"concept {wrong} is not one of the extractor's 8 concepts"):
                run(name, extractor, (tokens, free, torch.tensor([1, wrong, 2])))
        with pytest.raises(ConfigError, match="none of the 8 codes is live"):
            run(name, extractor, case, alive=torch.zeros(8, dtype=torch.bool))
        with pytest.raises(ShapeError, match="mask of live codes has 5 entries but the codebook 8"):
            run(name, extractor, case, alive=torch.ones(5, dtype=torch.bool))
        with pytest.raises(ConfigError, match=r"2 settings wrong: restarts=0 must be at least 1; batch=-1"):
            run(name, extractor, case, restarts=0, batch=-1)

    def test_nan_weights_are_named(self, name, extractor, case):
        with torch.no_grad():
            extractor.scale.fill_(torch.nan)
        with pytest.raises(ModelError, match="gives NaN logits for 6 of 6 images"):
            run(name, extractor, case)


def test_the_registry_is_not_empty():
    assert len(GRADIENT) >= 2


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("start", ["image", "mean", "random"])
def test_a_gradient_search_does_not_end_worse_than_it_began(name, start, extractor, case):
    trace = run(name, extractor, case, start=start, steps=80)
    assert trace.steps[0] == 0
    assert trace.steps[-1] == 80
    assert (trace.probability[-1] >= trace.probability[0] - 1e-6).all()
    assert (trace.probability[-1] - trace.probability[0]).mean() > 0.1


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_restarts_differ(name, extractor, case):
    found = run(name, extractor, case, start="random", steps=3).tokens
    assert not torch.equal(found[:, 0], found[:, 1])


def test_the_random_control_differs_from_the_searches_and_does_worse(extractor, case):
    control = run("random_codes", extractor, case)
    for name in GRADIENT:
        trace = run(name, extractor, case, steps=80)
        assert not torch.equal(trace.tokens, control.tokens)
        assert trace.probability[-1].mean() > control.probability[-1].mean() + 0.1


@pytest.mark.parametrize("start", ["image", "mean", "random"])
def test_the_gradient_searches_have_the_same_start(start, extractor, case):
    """Without a perturbation the decoded start is the same grid; at the mean both stand between all codes."""
    first = [run(name, extractor, case, start=start, spread=0.0, steps=1).probability[0] for name in GRADIENT]
    if start != "mean":
        assert torch.equal(first[0], first[1])
    if start == "image":
        tokens, _, target = case
        chance = extractor(TOY.embed(tokens)).softmax(1).gather(1, target[:, None])
        torch.testing.assert_close(first[0], chance.detach().expand(3, 2))
