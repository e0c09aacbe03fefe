from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcortex.errors import ConfigError
from vqcortex.search.embedding import EmbeddingOptimisation
from vqcortex.search.reference import PublishedSearch, best_of_checkpoints, checkpoints
from vqcortex.seeds import generator_for

TOKENS = torch.tensor([[[0, 1, 2], [3, 4, 5]], [[3, 2, 1], [5, 5, 0]]])
FREE = torch.tensor([[True, False, True], [False, True, False]])
TARGET = torch.tensor([1, 0])
CODEBOOK = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
ARMS = ["token", "embedding"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 12), nn.Tanh(), nn.Linear(12, 2))


def run(net, images=(0, 1), **settings):
    settings = {"steps": 20, "rate": 0.1, "checkpoint_every": 6, **settings}
    chosen = list(images)
    ids = ["ab"[i] for i in chosen]
    return PublishedSearch(**settings)(net, CODEBOOK, TOKENS[chosen], FREE, TARGET[chosen], ids)


def test_the_published_search_looks_eleven_times():
    assert checkpoints(5000, 500) == (0, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4000, 4500, 4999)


def test_the_best_checkpoint_is_kept_per_image():
    assert best_of_checkpoints(torch.tensor([[0.1, 0.9], [0.3, 0.2]])).tolist() == pytest.approx([0.3, 0.9])


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("all_rows", [True, False])
def test_frozen_positions_never_change(net, arm, all_rows):
    found = run(net, arm=arm, all_rows=all_rows)
    assert found.trace.tokens.shape == (2, 1, 2, 3)
    assert found.checkpoints.shape == (5, 2, 2, 3)
    assert found.trace.steps == (0, 6, 12, 18, 19)
    assert (found.checkpoints[:, :, ~FREE] == TOKENS[:, ~FREE]).all()
    assert torch.equal(found.trace.tokens[:, 0, ~FREE], TOKENS[:, ~FREE])


def test_rows_that_cannot_change_and_weights_that_do_not_train_are_wasted_work(net):
    results = [
        run(net, arm="embedding", all_rows=rows, weight_gradients=weights)
        for rows in (True, False)
        for weights in (True, False)
    ]
    assert all(torch.equal(one.checkpoints, results[0].checkpoints) for one in results[1:])
    token = [run(net, weight_gradients=weights).checkpoints for weights in (True, False)]
    assert torch.equal(token[0], token[1])


def test_the_token_arm_decodes_its_last_draw_and_not_the_argmax(net):
    published, mended = run(net, rate=1e-6), run(net, rate=1e-6, decodes_draw=False)
    assert torch.equal(published.trace.tokens[:, 0], published.checkpoints[-1])
    assert torch.equal(published.checkpoints, mended.checkpoints)
    assert not torch.equal(mended.trace.tokens[:, 0], mended.checkpoints[-1])


def test_draws_depend_on_earlier_images_only_when_company_matters(net):
    alone = run(net, images=[1]).checkpoints[:, 0]
    assert not torch.equal(run(net).checkpoints[:, 1], alone)
    alone = run(net, images=[1], company_matters=False).checkpoints[:, 0]
    assert torch.equal(run(net, company_matters=False).checkpoints[:, 1], alone)


def test_the_token_arm_finds_the_best_codes_of_a_linear_extractor():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(18, 2))
    found = run(linear, steps=100, rate=0.3, decodes_draw=False).trace.tokens[:, 0]
    worth = CODEBOOK @ linear[1].weight.detach().view(2, 3, 6)[TARGET]  # (b, k, hw)
    assert torch.equal(found[:, FREE], worth.argmax(1)[:, FREE.flatten()])


def test_the_embedding_arm_is_ours_from_the_unperturbed_image(net):
    search = EmbeddingOptimisation(steps=20, rate=0.1, spread=0.0)
    ours = search(net, CODEBOOK, TOKENS, FREE, TARGET, ["a", "b"])
    assert torch.equal(run(net, arm="embedding").trace.tokens, ours.tokens)
    assert not torch.equal(ours.tokens[:, 0], TOKENS)


@pytest.mark.parametrize("weight_gradients", [True, False])
def test_the_extractor_comes_back_as_it_was(net, weight_gradients):
    net[1].weight.requires_grad_(False)
    net.train()
    run(net, weight_gradients=weight_gradients)
    assert [weight.requires_grad for weight in net.parameters()] == [False, True, True, True]
    assert all(weight.grad is None for weight in net.parameters())
    assert net.training


def test_the_token_arm_equals_the_formula_written_out(net):
    found = run(net, images=[0], steps=3, checkpoint_every=1).trace.tokens[0, 0]
    rng = generator_for(0)
    logits = torch.full((6, 6), -300.0)
    logits[torch.arange(6), TOKENS[0].flatten()] = 300.0
    logits[FREE.flatten()] = torch.randn(3, 6, generator=rng)
    logits.requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.1)
    for _ in range(3):
        noise = -torch.log(-torch.log(torch.rand(6, 6, generator=rng) + 1e-20) + 1e-20)
        soft = torch.softmax(logits + noise, 1)
        hard = nn.functional.one_hot(soft.argmax(1), 6).float()
        embedded = ((hard - soft).detach() + soft) @ CODEBOOK
        loss = -net(embedded.T.reshape(1, 3, 2, 3))[0, 1]
        (logits.grad,) = torch.autograd.grad(loss, logits)
        logits.grad *= FREE.flatten()[:, None]
        adam.step()
    assert torch.equal(found, hard.argmax(1).view(2, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every=0 must be at least 1"),
        ({"rate": 0.0}, "rate=0.0 must be above 0"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PublishedSearch(**wrong)
