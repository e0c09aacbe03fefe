"""What every registered edit strategy owes its caller."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vqcortex.adapters.toy import ToyAdapter
from vqcortex.editing import CONTROLS, STRATEGIES, make_strategy
from vqcortex.editing.protocol import Means, Strategy, Task
from vqcortex.errors import ConfigError, ShapeError, TokenError, UnknownName

TOY = ToyAdapter()
IDS = ("a", "b", "c")
ALIVE = torch.tensor([True, True, True, False, True, True, True, True])


class Colours(nn.Module):
    """Logit of a colour: how much of the grid lies near it."""

    def forward(self, embedded):
        away = (embedded[:, None] - TOY.codebook[None, :, :, None, None]).square().sum(2)
        return 30 * torch.exp(-2 * away).mean((2, 3))


def searched(task, mask):
    return torch.where(mask, task.target[:, None, None], task.tokens)


COUNTS = torch.arange(8 * 16).view(8, 4, 4) % 13
MEANS = Means(
    codebook=TOY.codebook, alive=ALIVE, choosers=(Colours(),), decode=TOY.decode,
    listed={one: torch.tensor([one, (one + 1) % 8, -1]) for one in range(8)},
    places={one: COUNTS.roll(one, 0) for one in range(8)},
    effects={one: torch.sin(torch.arange(128.0)).view(8, 4, 4) + one for one in range(8)},
    chances=TOY.log_probabilities, search=searched,
)  # fmt: skip


@pytest.fixture
def task():
    free = torch.zeros(3, 4, 4, dtype=torch.bool)
    free[0, 1:3, 1:4] = free[1, :2, :2] = free[2, 0] = True
    source = torch.tensor([0, 4, 6])
    return Task(
        tokens=TOY.generate(source, IDS, seed=0),
        free=free,
        source=source,
        target=torch.tensor([7, 1, 2]),
        image_ids=IDS,
    )


@pytest.mark.parametrize("name", sorted(STRATEGIES))
class TestEveryStrategy:
    def test_it_speaks_the_protocol_under_its_name(self, name):
        assert isinstance(make_strategy(name), Strategy)
        assert make_strategy(name).name == name

    def test_tokens_change_inside_the_region_only_and_the_task_stays(self, name, task):
        before = task.tokens.clone()
        found = make_strategy(name)(task, MEANS)
        assert found.shape == before.shape
        assert torch.equal(task.tokens, before)
        assert torch.equal(found[~task.free], before[~task.free])
        assert not torch.equal(found, before)

    def test_only_live_codes_are_put_in(self, name, task):
        found = make_strategy(name)(task, MEANS)
        assert ALIVE[found[found != task.tokens]].all()

    def test_company_and_order_change_nothing(self, name, task):
        together = make_strategy(name)(task, MEANS)
        for row in (2, 0, 1):
            assert torch.equal(make_strategy(name)(task.take([row]), MEANS)[0], together[row])

    def test_it_does_the_same_again(self, name, task):
        assert torch.equal(make_strategy(name)(task, MEANS), make_strategy(name)(task, MEANS))

    def test_an_empty_region_is_refused(self, name, task):
        with pytest.raises(ConfigError, match="region of image 'b' holds no position"):
            make_strategy(name)(replace(task, free=task.free & torch.tensor([True, False, True])[:, None, None]), MEANS)

    def test_a_target_that_is_there_already_is_refused(self, name, task):
        with pytest.raises(ConfigError, match="image 'c' shows its target, concept 6, already"):
            make_strategy(name)(replace(task, target=torch.tensor([7, 1, 6])), MEANS)

    def test_a_token_outside_the_codebook_is_refused(self, name, task):
        with pytest.raises(TokenError, match=r"span \[8, 8\]"):
            make_strategy(name)(replace(task, tokens=torch.full_like(task.tokens, 8)), MEANS)

    def test_regions_of_another_shape_are_refused(self, name, task):
        with pytest.raises(ShapeError, match=r"regions have shape \(2, 4, 4\)"):
            make_strategy(name)(replace(task, free=task.free[:2]), MEANS)

    def test_without_live_codes_there_is_nothing_to_put_in(self, name, task):
        with pytest.raises(ConfigError, match="none of the 8 codes is live"):
            make_strategy(name)(task, replace(MEANS, alive=torch.zeros(8, dtype=torch.bool)))


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"random_codes"}))
def test_what_a_strategy_needs_it_asks_for_by_name(name, task):
    with pytest.raises(ConfigError, match=rf"edit strategy '{name}' needs .*, and there is none; "):
        make_strategy(name)(task, Means(codebook=TOY.codebook, alive=ALIVE))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_changes_every_token_of_its_region(name, task):
    changed = make_strategy(name)(task, MEANS) != task.tokens
    assert torch.equal(changed, task.free)


def test_settings_that_no_strategy_has_are_refused():
    with pytest.raises(ConfigError, match=r"no edit strategy has a setting 'widht'; known: .*candidates"):
        make_strategy("smallest", widht=3)
    with pytest.raises(UnknownName, match="Did you mean 'smallest'"):
        make_strategy("smalest")
