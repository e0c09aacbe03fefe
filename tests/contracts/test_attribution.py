"""What every attribution method owes its caller."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.attribution import METHODS
from vqcortex.attribution.protocol import Method, build_method
from vqcortex.attribution.reference import published_gradient
from vqcortex.errors import ConfigError, ModelError, ShapeError
from vqcortex.registry import Registry

IDS = ["a", "b", "c", "d"]
NAMES = sorted(METHODS)
NOISY = [name for name in NAMES if hasattr(METHODS[name], "draws")]
SEEDED = [name for name in NAMES if hasattr(METHODS[name], "seed")]
IN_PARTS = [name for name in NAMES if hasattr(METHODS[name], "at_once")]
FOR_ANY_CONCEPT = {"attention_rollout"}  # attention does not ask what for
SMALL = {"draws": 6, "nodes": 3, "permutations": 3, "masks": 8}


class Net(nn.Module):
    """Small, smooth, and with what makes batches leak: a batch norm and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 16, 8)

    def forward(self, embedded):
        return self.head(self.drop(torch.tanh(self.norm(self.mix(embedded)))).flatten(1))


class AttentiveNet(Net):
    """The same with a class token that attends to the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, 6))
        self.blocks = nn.ModuleList(nn.MultiheadAttention(6, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(6, 8)

    def forward(self, embedded):
        x = self.drop(torch.tanh(self.norm(self.mix(embedded)))).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = x + block(3 * x, 3 * x, x, need_weights=False)[0]
        return self.head(x[:, 0])


@pytest.fixture
def case(request):
    torch.manual_seed(0)
    about = getattr(request.node, "callspec", None)
    net = AttentiveNet if about and about.params.get("name") == "attention_rollout" else Net
    toy, concept = ToyAdapter(), torch.tensor([1, 4, 7, 4])
    # One image far wider in range than the others: a shared noise scale would show.
    embedded = toy.embed(toy.generate(concept, IDS, 0)) * torch.tensor([1, 5, 1, 1])[:, None, None, None]
    return net(), embedded, concept


def method_named(name: str, **settings) -> Method:
    codes = ToyAdapter().codebook
    return build_method(name, codebook=codes, frequency=torch.arange(len(codes)), resamples=2, **{**SMALL, **settings})


@pytest.mark.parametrize("name", NAMES)
def test_company_changes_nothing(name, case):
    net, embedded, concept = case
    method = method_named(name)
    alone = [method(net, embedded[[i]], concept[[i]], [IDS[i]]) for i in range(4)]
    torch.testing.assert_close(method(net, embedded, concept, IDS), torch.cat(alone))


@pytest.mark.parametrize("sampling", ["plain", "antithetic", "quasi"])
@pytest.mark.parametrize("name", NAMES)
def test_company_and_order_change_nothing_with_drawn_codes_however_drawn(name, sampling, case):
    net, embedded, concept = case
    method, order = method_named(name, baseline="resampled", sampling=sampling), [2, 0, 3, 1]
    alone = [method(net, embedded[[i]], concept[[i]], [IDS[i]]) for i in order]
    shuffled = method(net, embedded[order], concept[order], [IDS[i] for i in order])
    torch.testing.assert_close(shuffled, torch.cat(alone))


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_forward_holds_no_more_grids_than_allowed_and_that_changes_nothing(name, case):
    net, embedded, concept = case
    seen = []
    net.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    few = method_named(name, at_once=3)(net, embedded, concept, IDS)
    assert max(seen) == 3
    torch.testing.assert_close(few, method_named(name, at_once=10_000)(net, embedded, concept, IDS))


@pytest.mark.parametrize("name", IN_PARTS)
def test_no_grid_at_once_is_an_error(name):
    with pytest.raises(ConfigError, match="at_once=0 must be at least 1"):
        method_named(name, at_once=0)


@pytest.mark.parametrize("name", NAMES)
def test_order_changes_nothing(name, case):
    net, embedded, concept = case
    method, order = method_named(name), [2, 0, 3, 1]
    shuffled = method(net, embedded[order], concept[order], [IDS[i] for i in order])
    torch.testing.assert_close(shuffled, method(net, embedded, concept, IDS)[order])


@pytest.mark.parametrize("name", NAMES)
def test_two_calls_agree_to_the_bit_whatever_the_global_seed(name, case):
    torch.manual_seed(1)
    first = method_named(name)(*case, IDS)
    torch.manual_seed(2)
    assert torch.equal(method_named(name)(*case, IDS), first)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_one_per_position_and_follow_the_concept(name, case):
    net, embedded, concept = case
    scores = method_named(name)(net, embedded, concept, IDS)
    assert scores.shape == (4, 4, 4)
    assert scores.isfinite().all()
    others = method_named(name)(net, embedded, (concept + 1) % 8, IDS)
    assert torch.allclose(scores, others) == (name in FOR_ANY_CONCEPT)


@pytest.mark.parametrize("name", NAMES)
def test_the_extractor_comes_back_as_it_went_in(name, case):
    net, embedded, concept = case
    net.train()
    net.norm.eval()
    net.head.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    method_named(name)(net, embedded, concept, IDS)
    assert [net.training, net.mix.training, net.norm.training, net.drop.training] == [True, True, False, True]
    wants = {key: weight.requires_grad for key, weight in net.named_parameters()}
    assert wants.pop("head.weight") is False
    assert all(wants.values())
    assert all(weight.grad is None for weight in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_is_left_alone_and_the_scores_carry_no_graph(name, case):
    net, embedded, concept = case
    before = embedded.clone()
    scores = method_named(name)(net, embedded, concept, IDS)
    assert torch.equal(embedded, before)
    assert not embedded.requires_grad
    assert not scores.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_float64_gives_the_same_scores_more_precisely(name, case):
    net, embedded, concept = case
    single = method_named(name)(net, embedded, concept, IDS)
    double = method_named(name)(net.double(), embedded.double(), concept, IDS)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_the_caller_may_have_switched_gradients_off(name, mode, case):
    net, embedded, concept = case
    wanted = method_named(name)(net, embedded, concept, IDS)
    with mode():
        assert torch.equal(method_named(name)(net, embedded.clone(), concept, IDS), wanted)


def test_some_methods_draw_noise():
    assert "tis" in NOISY
    assert "gradient" not in NOISY


@pytest.mark.parametrize("name", SEEDED)
def test_the_seed_and_the_image_id_decide_what_is_drawn(name, case):
    net, embedded, concept = case
    scores = method_named(name)(net, embedded, concept, IDS)
    assert not torch.allclose(method_named(name, seed=1)(net, embedded, concept, IDS), scores)
    assert not torch.allclose(method_named(name)(net, embedded, concept, ["e", "f", "g", "h"]), scores)


@pytest.mark.parametrize("baseline", ["mean", "resampled"])
@pytest.mark.parametrize("sampling", ["plain", "antithetic", "quasi"])
@pytest.mark.parametrize("name", NAMES)
def test_passes_are_the_images_that_go_forward_and_the_gradients_that_come_back(name, sampling, baseline, case):
    net, embedded, concept = case
    forward, backward = [], []

    def count(module, given, logits):
        forward.append(len(logits))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: backward.append(len(gradient)))

    net.register_forward_hook(count)
    method = method_named(name, baseline=baseline, sampling=sampling)
    method(net, embedded, concept, IDS)
    assert method.passes((4, 4)) == (sum(forward) / 4, sum(backward) / 4)


def test_costs_on_a_grid_are_known():
    costs = {name: method_named(name).passes((4, 4)) for name in NAMES}
    assert costs == {
        "attention_rollout": (1, 0),
        "banzhaf": (8, 0),
        "ensemble": (6, 6),
        "gradient": (1, 1),
        "gradient_x_embedding": (1, 1),
        "greedy_removal": (135, 0),  # 16 + 15 + ... + 2
        "integrated_gradients": (3, 3),
        "noisy_gradient_x_embedding": (6, 6),
        "occlusion": (17, 0),
        "shapley": (47, 0),  # 3 orders of 15, and both ends
        "tis": (6, 6),
    }


class Graph:
    """Lives as long as the autograd node that holds it."""


class Mark(torch.autograd.Function):
    """Passes its input on, and ties a `Graph` to the node of this forward."""

    @staticmethod
    def forward(ctx, value, alive):
        ctx.graph = Graph()
        alive.add(ctx.graph)
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Watched(nn.Module):
    """Counts the graphs of earlier forwards that are still in memory at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.alive, self.seen = Net(), weakref.WeakSet(), []

    def forward(self, embedded):
        self.seen.append(len(self.alive))
        return self.net(Mark.apply(embedded, self.alive))


@pytest.mark.parametrize("name", NOISY)
def test_no_graph_outlives_its_draw(name, case):
    watched = Watched()
    method_named(name, draws=6)(watched, *case[1:], IDS)
    assert watched.seen == [0] * 6


def test_the_watch_sees_the_graphs_that_the_published_loop_keeps(case):
    watched = Watched()
    published_gradient(watched, *case[1:], draws=6, one_backward_per_sample=True)
    assert watched.seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_image_id_is_an_error(name, case):
    with pytest.raises(ShapeError, match="4 images came with 4 concepts and 3 ids"):
        method_named(name)(*case, IDS[:3])


@pytest.mark.parametrize("name", NAMES)
def test_a_concept_without_a_logit_is_an_error(name, case):
    net, embedded, concept = case
    with pytest.raises(ConfigError, match=r"concepts span \[2, 8\] but this extractor has logits \[0, 7\]"):
        method_named(name)(net, embedded, concept + 1, IDS)


@pytest.mark.parametrize("name", NAMES)
def test_nan_weights_are_an_error_that_says_so(name, case):
    net, embedded, concept = case
    net.mix.weight.data[0, 0, 0, 0] = torch.nan
    what = "gradients" if method_named(name).passes((4, 4))[1] else "logits"
    with pytest.raises(ModelError, match=rf"NaN or infinite {what} for 4 of 4 images, 'a' first.*weights"):
        method_named(name)(net, embedded, concept, IDS)


class Cut(Net):
    """No gradient comes back through it."""

    def forward(self, embedded):
        return super().forward(embedded.detach())


@pytest.mark.parametrize("name", [name for name in NAMES if method_named(name).passes((4, 4))[1]])
def test_an_extractor_that_cuts_the_gradient_is_an_error(name, case):
    with pytest.raises(ModelError, match="no gradient with respect to the embedding"):
        method_named(name)(Cut(), *case[1:], IDS)


@pytest.mark.parametrize("name", IN_PARTS)
def test_methods_that_only_go_forward_need_no_gradient(name, case):
    assert method_named(name)(Cut(), *case[1:], IDS).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_an_extractor_with_one_concept_is_an_error(name, case):
    net, embedded, concept = case
    net.head = nn.Linear(net.head.in_features, 1)
    with pytest.raises(ConfigError, match=r"this extractor has 1 logit.*at least 2 concepts are needed"):
        method_named(name)(net, embedded, torch.zeros_like(concept), IDS)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(METHODS[name], "baseline")])
def test_a_baseline_of_another_width_is_an_error(name, case):
    with pytest.raises(ShapeError, match=r"baseline has shape \(5,\) but codes have 3 channels"):
        method_named(name, baseline=torch.zeros(5))(*case, IDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_where_it_comes_from_and_which_way_is_better(name):
    method = method_named(name)
    assert isinstance(method, Method)
    assert method.better == "higher"
    assert "arXiv:" in method.source


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws=0 must be"),
        ({"noise": -0.1}, r"noise=-0\.1 must be"),
        ({"sampling": "sobol"}, "sampling='sobol' must be one of plain, antithetic, quasi"),
    ],
)
def test_noise_settings_out_of_range_are_errors(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        method_named(name, **settings)


def test_the_registry_is_not_empty():
    assert isinstance(METHODS, Registry)
    assert {"tis", "gradient", "gradient_x_embedding", "noisy_gradient_x_embedding"} <= set(NAMES)
