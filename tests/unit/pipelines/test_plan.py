"""Which images a study takes: more of each concept never change the first ones."""

import pytest

from vqcortex.adapters import load_model
from vqcortex.errors import ConfigError
from vqcortex.pipelines.plan import Encoded, choose, plan_of
from vqcortex.pipelines.progress import QUIET
from vqcortex.pipelines.settings import TokensSettings

LABELS = [0, 2, 0, 0, 1, 2, 0, 2, 2, 1, 0]


class Counted:
    """A source of three concepts that keeps which rows were asked for."""

    concepts = ("cat", "bat", "dog")

    def __init__(self):
        self.image_ids = [f"row/{row}" for row in range(len(LABELS))]
        self.asked = []

    def __len__(self):
        return len(LABELS)

    def __iter__(self):
        raise AssertionError("every picture was decoded")

    def labels(self):
        return iter(LABELS)

    def pictures(self, rows):
        for row in rows:
            self.asked.append(row)
            yield None


def rows(plan, done=(0, 0)):
    return [(one.image_id, one.concept, one.index) for one in plan.images(done)]


def test_the_first_images_of_each_concept_are_taken_and_no_other_is_read():
    source = Counted()
    plan = Encoded(source, ("cat", "dog"), 2)
    assert rows(plan) == [("row/0", 0, 0), ("row/1", 1, 0), ("row/2", 0, 1), ("row/5", 1, 1)]
    assert source.asked == [0, 1, 2, 5]


def test_images_that_are_there_are_passed_over_unread():
    source = Counted()
    assert rows(Encoded(source, ("cat", "dog"), 3), done=(2, 1)) == [("row/3", 0, 2), ("row/5", 1, 1), ("row/7", 1, 2)]
    assert source.asked == [3, 5, 7]


@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_plan_for_more_holds_every_image_of_a_plan_for_fewer(few):
    plan = Encoded(Counted(), ("cat", "dog"), 4)
    assert set(rows(plan.of_each(few))) < set(rows(plan))


def test_generated_images_go_round_the_concepts():
    settings = TokensSettings(model="toy", concepts=("red", "blue"), per_concept=10)
    plan = plan_of(settings, load_model("toy"))
    assert plan.total == 20
    assert rows(plan)[:3] == [("blue/000000", 0, 0), ("red/000000", 1, 0), ("blue/000001", 0, 1)]
    assert rows(plan, done=(10, 9)) == [("red/000009", 1, 9)]
    assert plan.inputs(QUIET) == {}


def test_of_ten_images_seven_train_one_chooses_and_two_test():
    plan = plan_of(TokensSettings(model="toy", concepts=("red", "blue"), per_concept=20), load_model("toy"))
    splits = [one.split for one in plan.images((0, 20))]
    assert splits == ["train"] * 7 + ["validation"] + ["test"] * 2 + ["train"] * 7 + ["validation"] + ["test"] * 2


def test_one_concept_is_too_few():
    with pytest.raises(ConfigError, match=r"1 concept\(s\) chosen"):
        choose(["a"], ["a", "b"], "it")
