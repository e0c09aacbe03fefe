"""Judges trained on pictures: what they learn, that they learn it twice alike, and that a kill costs little."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vqcortex.errors import DataError, ModelError
from vqcortex.files import write_json
from vqcortex.judges import ARCHITECTURES, load_judges
from vqcortex.judges.train import (
    JUDGES,
    JudgeTraining,
    Pictures,
    fresh_judge,
    logits_of,
    measured,
    minibatches,
    rate_at,
    shifted,
    sight,
    train_judge,
    write_judge,
)
from vqcortex.seeds import generator_for

QUICK = JudgeTraining(epochs=4, rate=3e-3, minibatch=16)
TINTS = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8]])


def tinted(count: int, seed: int, size: tuple[int, int] = (8, 8)) -> Pictures:
    """Noisy pictures of three colours, in two blocks."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 3, *size, generator=rng) * 0.2
    pixels = ((TINTS[labels][:, :, None, None] + noise).clamp(0, 1) * 255).byte().numpy()
    half = count // 2
    places = torch.tensor([(int(row >= half), row - half * (row >= half)) for row in range(count)])
    return Pictures([pixels[:half], pixels[half:]], places, labels)


def judge(name: str, seed: int = 0) -> torch.nn.Module:
    return fresh_judge(name, side=8, patch=2, channels=3, concepts=3, seed=seed)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.flatten().double() for one in network.state_dict().values()])


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.nn.Module]:
    networks = {name: judge(name) for name in JUDGES}
    for name, network in networks.items():
        train_judge(name, network, tinted(90, 0), tinted(24, 1), QUICK)
    return networks


@pytest.mark.parametrize("name", JUDGES)
def test_colours_are_recognised(trained, name):
    found = measured(trained[name], 1.0, tinted(60, 2))
    assert found.accuracy > 0.9
    assert found.chance == pytest.approx(1 / 3)
    assert not found.is_weak


@pytest.mark.parametrize("name", JUDGES)
def test_training_again_gives_the_same_weights_whatever_was_drawn_before(trained, name):
    torch.manual_seed(7)
    again = judge(name)
    train_judge(name, again, tinted(90, 0), tinted(24, 1), QUICK)
    assert torch.equal(weights(again), weights(trained[name]))


def test_another_seed_gives_other_weights_and_training_draws_nothing_from_the_global_generator():
    assert not torch.equal(weights(judge("cnn")), weights(judge("cnn", seed=1)))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    train_judge("cnn", judge("cnn"), tinted(12, 0), tinted(6, 1), replace(QUICK, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)


class Killed(Exception):
    """Stands for the signal."""


def test_a_killed_training_goes_on_from_its_last_epoch_to_the_same_weights(trained, tmp_path):
    seen = []

    def kill() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise Killed

    with pytest.raises(Killed):
        train_judge("patch", judge("patch"), tinted(90, 0), tinted(24, 1), QUICK, tmp_path / "s.pt", kill)
    again, epochs = judge("patch"), []
    state = train_judge(
        "patch", again, tinted(90, 0), tinted(24, 1), QUICK, tmp_path / "s.pt", lambda: epochs.append(1)
    )
    assert len(state.history) == len(epochs) == QUICK.epochs
    assert torch.equal(weights(again), weights(trained["patch"]))


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_torn_or_foreign_checkpoint_costs_a_fresh_start_only(trained, tmp_path, content):
    path = tmp_path / "s.pt"
    if content is None:
        train_judge("cnn", judge("cnn"), tinted(12, 0), tinted(6, 1), replace(QUICK, epochs=1), path)
    else:
        path.write_bytes(content)
    again = judge("cnn")
    train_judge("cnn", again, tinted(90, 0), tinted(24, 1), QUICK, path)
    assert torch.equal(weights(again), weights(trained["cnn"]))


def test_training_ends_with_the_best_epoch_and_stops_when_nothing_gets_better():
    impatient = replace(QUICK, epochs=30, patience=2)
    network = judge("cnn")
    state = train_judge("cnn", network, tinted(48, 0), tinted(24, 1), impatient)
    losses = [one.validation_loss for one in state.history]
    assert state.best == 1 + losses.index(min(losses))
    assert len(losses) == min(30, state.best + 2)
    logits, labels = logits_of(network, tinted(24, 1))
    assert float(torch.nn.functional.cross_entropy(logits, labels)) == pytest.approx(min(losses), abs=1e-6)


def test_noise_teaches_nothing_and_the_judge_says_so(tmp_path):
    def noise(count: int, seed: int) -> Pictures:
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), np.uint8)
        return Pictures(
            [pixels], torch.stack([torch.zeros(count).long(), torch.arange(count)], 1), tinted(count, 0).labels
        )

    network = judge("patch")
    state = train_judge("patch", network, noise(60, 0), noise(24, 1), replace(QUICK, epochs=2))
    entry = write_judge(tmp_path, "patch", network, state, noise(24, 1), noise(60, 2))
    write_json(tmp_path / "judges.json", {"concepts": ["a", "b", "c"], "judges": [entry]})
    (opened,) = load_judges(str(tmp_path))
    assert opened.name == "patch (too weak)"
    assert opened.quality.is_weak


def test_what_is_written_is_what_load_judges_reads(trained, tmp_path):
    state = train_judge("cnn", judge("cnn"), tinted(12, 0), tinted(6, 1), replace(QUICK, epochs=1))
    entry = write_judge(tmp_path, "cnn", trained["cnn"], state, tinted(24, 1), tinted(60, 2))
    write_json(tmp_path / "judges.json", {"concepts": ["r", "g", "b"], "judges": [entry]})
    (opened,) = load_judges(str(tmp_path))
    assert opened.name == "cnn"
    assert opened.quality.accuracy > 0.9
    assert opened.temperature == entry["temperature"]
    pixels = tinted(6, 3).take(torch.arange(6))
    torch.testing.assert_close(opened(pixels), (trained["cnn"](pixels) / entry["temperature"]).log_softmax(1))


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28), (64, 32), (100, 256), (256, 256), (300, 300)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("concepts", [2, 37])
def test_judges_look_at_any_size_colour_and_number_of_concepts(size, channels, concepts):
    side, patch = sight(size, 64)
    assert side % patch == 0
    assert side <= 64
    for name in JUDGES:
        network = fresh_judge(name, side=side, patch=patch, channels=channels, concepts=concepts, seed=0).eval()
        assert network(torch.rand(2, 3, *size)).shape == (2, concepts)


def test_every_judge_is_a_registered_architecture():
    assert set(JUDGES) <= set(ARCHITECTURES)


def test_pictures_come_from_their_blocks_in_the_order_asked():
    pictures = tinted(10, 0)
    both = np.concatenate(pictures.blocks)
    rows = torch.tensor([7, 0, 5])
    torch.testing.assert_close(pictures.take(rows), torch.from_numpy(both[rows.numpy()]).float() / 255)
    assert torch.cat([labels for _, labels in pictures.parts(4)]).tolist() == pictures.labels.tolist()
    assert pictures.has_colour


def test_grey_pictures_have_no_colour():
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), np.uint8), 3, 1)
    assert not Pictures([grey], torch.tensor([[0, 0], [0, 3]]), torch.tensor([0, 1])).has_colour


def test_no_step_has_a_single_picture_and_few_pictures_still_make_some_steps():
    for count in (2, 3, 17, 129, 2000):
        parts = minibatches(count, 64, generator_for(0, count))
        assert sorted(torch.cat(parts).tolist()) == list(range(count))
        assert min(map(len, parts)) > 1
        assert max(map(len, parts)) <= 64
    assert len(minibatches(130, 64, generator_for(0))) >= 16


def test_the_rate_rises_and_falls():
    assert rate_at(0, 1.0) < rate_at(0.04, 1.0) <= 1
    assert rate_at(0.5, 1.0) > rate_at(0.9, 1.0) > rate_at(1, 1.0) >= 0


def test_a_shift_moves_all_pictures_alike_and_draws_out_the_edge():
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 3, 8, 8) / 64
    moved = [shifted(image, generator_for(0, one)) for one in range(12)]
    assert any(not torch.equal(one, image) for one in moved)
    for one in moved:
        assert torch.equal(one[0], one[1])
        assert one[..., 2:-2, 2:-2].unique().numel() == 16


def test_too_few_pictures_and_a_rate_out_of_reason_are_told():
    with pytest.raises(DataError, match="no pictures to train or measure"):
        Pictures([], torch.zeros(0, 2).long(), torch.zeros(0).long())
    with pytest.raises(DataError, match="at least 2 are needed"):
        train_judge("cnn", judge("cnn"), tinted(1, 0), tinted(6, 1), QUICK)
    with pytest.raises(ModelError, match=r"judge 'patch': the \w+ loss became (nan|inf) .*lower --judge-rate"):
        train_judge("patch", judge("patch"), tinted(12, 0), tinted(6, 1), replace(QUICK, rate=1e30))
