"""What every registered search strategy owes its caller."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.errors import ConfigError, ModelError, ShapeError, TokenError
from vqcortex.search import SEARCHES, make_search
from vqcortex.search.objective import value_of
from vqcortex.search.protocol import Search

TOY = ToyAdapter()
IDS = ["a", "b", "c"]
QUICK = {"steps": 25, "rate": 0.1, "restarts": 2, "record_every": 10, "seed": 5, "budget": 60}
GRADIENT = [name for name in sorted(SEARCHES) if hasattr(SEARCHES[name], "steps")]
SWAPS = [name for name in sorted(SEARCHES) if hasattr(SEARCHES[name], "budget")]


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


class Counted(nn.Module):
    """An extractor that counts its forwards and backwards, grid by grid."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.passes = inner, 0

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c"]:
        self.passes += len(embedded) * (2 if embedded.requires_grad else 1)
        return self.inner(embedded)


class Likes:
    """A regulariser that likes one code."""

    def __init__(self, code: int, codes: int = 8) -> None:
        self.code, self.codes = code, codes

    def __call__(self, grids: Tensor, target: Tensor) -> Tensor:
        return (grids == self.code).sum((1, 2)).float()

    def swaps(self, grids: Tensor, target: Tensor, places: tuple[Tensor, Tensor], codes: Tensor) -> Tensor:
        now = (grids[:, places[0], places[1]] == self.code).float()
        return (codes == self.code).float() - now[..., None]


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
    assert len(SWAPS) >= 3


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("start", ["image", "mean", "random"])
def test_a_gradient_search_does_not_end_worse_than_it_began(name, start, extractor, case):
    trace = run(name, extractor, case, start=start, steps=80)
    assert trace.steps[0] == 0
    assert trace.steps[-1] == 80
    assert (trace.probability[-1] >= trace.probability[0] - 1e-6).all()
    assert (trace.probability[-1] - trace.probability[0]).mean() > 0.1


@pytest.mark.parametrize("name", SWAPS)
class TestSwaps:
    @pytest.mark.parametrize("objective", ["logit", "log_probability", "margin"])
    @pytest.mark.parametrize("start", ["image", "mean", "random"])
    def test_more_passes_never_end_lower_by_the_objective(self, name, objective, start, extractor, case):
        few, many = (run(name, extractor, case, start=start, objective=objective, budget=one) for one in (1, 150))
        values = [value_of(extractor(TOY.embed(one.tokens.flatten(0, 1))), case[2].repeat_interleave(2), objective)
                  for one in (few, many)]  # fmt: skip
        assert (values[1] >= values[0] - 1e-3).all()
        assert (values[1] > values[0]).any()
        assert many.steps == (*range(0, 150, 10), 150)
        assert (many.probability[-1] - many.probability[0]).mean() > 0.1

    def test_no_more_passes_are_used_than_the_budget_has(self, name, extractor, case):
        tokens, free, target = case
        for budget in (1, 20, 37, 60):
            counted = Counted(extractor)
            search = make_search(name, **{**QUICK, "restarts": 1, "budget": budget})
            search(counted, TOY.codebook, tokens[:1], free, target[:1], IDS[:1])
            assert counted.passes <= budget
            assert counted.passes > budget / 2

    def test_the_first_restart_begins_at_the_image_and_the_others_elsewhere(self, name, extractor, case):
        tokens, free, _ = case
        found = run(name, extractor, case, budget=1).tokens
        assert torch.equal(found[:, 0], tokens)
        assert (found[:, 1] != tokens)[:, free].any()

    def test_a_regulariser_is_heard(self, name, extractor, case):
        trace = run(name, extractor, case, regulariser=Likes(3), weight=50.0, budget=200)
        assert (trace.tokens[:, :, case[1]] == 3).all()

    def test_swaps_that_are_wrong_are_named(self, name, extractor, case):
        with pytest.raises(ConfigError, match="budget=0 must be at least 1; candidates=-1 must be at least 1"):
            run(name, extractor, case, budget=0, candidates=-1)
        with pytest.raises(ConfigError, match=r"weight=-0.5 must be at least 0"):
            run(name, extractor, case, weight=-0.5, regulariser=Likes(3))
        with pytest.raises(ConfigError, match=r"weight=1.0 has no regulariser to weigh"):
            run(name, extractor, case, weight=1.0)
        with pytest.raises(ConfigError, match=r"shake=1.5 must lie in 0 to 1; "):
            run(name, extractor, case, shake=1.5, weight=1.0)
        with pytest.raises(ConfigError, match="the regulariser knows 5 codes but the codebook has 8"):
            run(name, extractor, case, weight=1.0, regulariser=Likes(3, codes=5))


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_restarts_differ(name, extractor, case):
    found = run(name, extractor, case, start="random", steps=3).tokens
    assert not torch.equal(found[:, 0], found[:, 1])


def test_the_random_control_differs_from_the_searches_and_does_worse(extractor, case):
    control = run("random_codes", extractor, case)
    for name in (*GRADIENT, *SWAPS):
        trace = run(name, extractor, case, steps=80, budget=160)
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
