"""Net2NetTransformer: our numbers, and the images it draws, are those of the official code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vqcortex.adapters import load_model
from vqcortex.adapters.protocol import GENERATE

FOLDER = Path(__file__).parents[1] / "data" / "golden" / "taming_net2net"
EXPECTED = load_file(FOLDER / "expected.safetensors")
CLASSES = EXPECTED["class_ids"]
FLAT = EXPECTED["tokens"].flatten(1)


@pytest.fixture(scope="module")
def model():
    return load_model(f"net2net:{FOLDER}")


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_first_stage_is_the_official_one(model):
    network = model.first.network
    image = network.prepare(EXPECTED["pixels"])
    close(image, EXPECTED["image"])
    close(network.encode(image), EXPECTED["prequant"])
    assert torch.equal(model.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
    close(model.codebook, EXPECTED["codebook"])
    embedded = model.embed(EXPECTED["tokens"])
    close(embedded, EXPECTED["quantized"])
    close(embedded, EXPECTED["quantized_straight_through"])
    close(network.decode(embedded), EXPECTED["decoded"])
    close(model.decode(embedded), EXPECTED["decoded_pixels"])


@torch.no_grad()
def test_the_second_best_code_is_as_far_behind_as_officially(model):
    latent = model.first.network.encode(EXPECTED["image"]).permute(0, 2, 3, 1)
    two = torch.cdist(latent.flatten(1, 2), model.codebook).square().topk(2, dim=2, largest=False).values
    close((two[..., 1] - two[..., 0]).view(2, 4, 4), EXPECTED["margin"])


@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
def test_logits_are_the_official_ones(model, cached):
    close(model.next_logits(CLASSES, EXPECTED["prefix_tokens"], cached=cached), EXPECTED["prefix_logits"])
    close(model.next_logits(CLASSES, FLAT[:, :-1], cached=cached), EXPECTED["teacher_logits"])


def test_the_greedy_image_is_the_official_one(model):
    greedy = model.likeliest(CLASSES, FLAT[:, :0])
    assert torch.equal(greedy, EXPECTED["greedy_tokens"])
    logits = model.next_logits(CLASSES, greedy[:, :-1])
    close(logits, EXPECTED["greedy_logits"])
    two = logits.topk(2, dim=2).values
    close(two[..., 0] - two[..., 1], EXPECTED["greedy_margin"])
    with torch.no_grad():
        embedded = model.embed(greedy.unflatten(1, model.grid))
        close(model.first.network.decode(embedded), EXPECTED["greedy_decoded"])


def test_half_an_image_is_continued_as_officially(model):
    assert torch.equal(model.likeliest(CLASSES, FLAT[:, :8]), EXPECTED["half_greedy_tokens"])


def test_drawing_the_likeliest_alone_is_greedy():
    model = load_model(f"net2net:{FOLDER}?top_k=1")
    assert torch.equal(model.generate(CLASSES, ["a", "b"], 5).flatten(1), EXPECTED["greedy_tokens"])


def test_drawing_step_by_step_without_a_cache_gives_the_same_image():
    from vqcortex.adapters.prior import Sampling, draw
    from vqcortex.seeds import generator_for

    model = load_model(f"net2net:{FOLDER}?temperature=0.8&top_k=20&top_p=0.9")
    slow = model.transformer.double()
    ids, drawn = ["x/1", "x/2"], CLASSES[:, None]
    uniform = torch.stack([torch.rand(16, generator=generator_for(3, i, "prior"), dtype=torch.float64) for i in ids])
    with torch.no_grad():
        for step in range(16):
            token = draw(slow(drawn)[:, -1], uniform[:, step], Sampling(temperature=0.8, top_k=20, top_p=0.9))
            drawn = torch.cat([drawn, token[:, None]], 1)
    fresh = load_model(f"net2net:{FOLDER}?temperature=0.8&top_k=20&top_p=0.9")
    assert torch.equal(fresh.generate(CLASSES, ids, 3).flatten(1), drawn[:, 1:])


def test_guided_draws_are_those_of_the_formula_one_image_at_a_time_without_a_cache():
    """Ho and Salimans 2022: softmax of (unconditional + g * (conditional - unconditional)) at every step."""
    from vqcortex.seeds import generator_for

    model = load_model(f"net2net:{FOLDER}?guidance=2.5&empty=10&temperature=0.8")
    found = model.generate(torch.tensor([3, 7]), ["x/1", "x/2"], 3).flatten(1)
    slow = model.transformer.double()
    for name, concept, tokens in zip(["x/1", "x/2"], [3, 7], found.tolist(), strict=True):
        uniform = torch.rand(16, generator=generator_for(3, name, "prior"), dtype=torch.float64)
        drawn: list[int] = []
        for step in range(16):
            with torch.no_grad():
                asked, plain = (slow(torch.tensor([[first, *drawn]]))[0, -1] for first in (concept, 10))
            chances = ((plain + 2.5 * (asked - plain)) / 0.8).softmax(0).tolist()
            code, passed = 0, chances[0]
            while passed <= uniform[step]:
                code += 1
                passed += chances[code]
            drawn.append(code)
        assert drawn == tokens


@torch.no_grad()
def test_a_class_and_the_code_of_its_number_share_a_row(model):
    logits = model.next_logits(torch.tensor([3]), torch.zeros(1, 0, dtype=torch.long))
    assert torch.equal(logits, model.transformer(torch.tensor([[3]])))


def test_the_head_is_not_the_table_of_embeddings(model):
    assert not torch.equal(model.transformer.head.weight, model.transformer.tok_emb.weight)


def test_the_last_image_token_is_never_an_input(model):
    assert model.transformer.sizes.positions == model.grid[0] * model.grid[1] == 16
    assert model.generate(CLASSES, ["a", "b"], 0).shape == (2, 4, 4)


def test_the_classes_are_those_of_the_config(model):
    assert GENERATE in model.abilities
    assert model.concepts == tuple(f"class {i:02}" for i in range(11))


def test_the_folder_and_the_file_are_recognised():
    assert "Net2NetTransformer" in load_model(FOLDER).recognised
    file = load_model(f"{FOLDER / 'checkpoints' / 'last.ckpt'}?heads=4")
    assert (file.family, file.size) == ("net2net", (8, 8))
    assert "tok_emb" in file.recognised


def test_the_first_stage_alone_opens_as_a_vqgan():
    alone = load_model(f"taming:{FOLDER}")
    assert torch.equal(alone.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
