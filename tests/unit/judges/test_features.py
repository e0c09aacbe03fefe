"""Features are what goes into the last linear layer, whatever the architecture."""

import pytest
import torch

from vqcortex.judges import load_judges
from vqcortex.judges.features import features_of


@pytest.mark.parametrize("number", [0, 1])
def test_the_last_layer_makes_the_judges_answer_of_them(number):
    judge = load_judges("zoo:fashion")[number]
    pixels = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    layer = [one for one in judge.network.modules() if isinstance(one, torch.nn.Linear)][-1]
    features = features_of(judge, pixels)
    answer = (layer(features) / judge.temperature).log_softmax(1)
    torch.testing.assert_close(answer, judge(pixels))
    assert len(layer._forward_pre_hooks) == 0


def test_a_judge_without_such_a_layer_gives_its_answers():
    judge, pixels = load_judges("toy")[0], torch.rand(2, 3, 16, 16)
    assert torch.equal(features_of(judge, pixels), judge(pixels))
