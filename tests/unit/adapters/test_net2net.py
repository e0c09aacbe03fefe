"""The class-conditional transformer: what decides a draw, what can be asked for, what is refused."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vqcortex.adapters import generator_of, net2net
from vqcortex.adapters.family import Files, Spec
from vqcortex.adapters.net2net import FAMILY, Transformer, TransformerSizes, recognise_net2net, wrap_net2net
from vqcortex.adapters.protocol import GENERATE, Generator
from vqcortex.errors import ConfigError, ModelError

DATA = Path(__file__).parents[2] / "data" / "golden"
FOLDER = DATA / "taming_net2net"
FILE = FOLDER / "checkpoints" / "last.ckpt"
EXPECTED = load_file(FOLDER / "expected.safetensors")
IDS = [f"image/{i}" for i in range(5)]
CONCEPT = torch.tensor([0, 3, 10, 3, 7])


def open_at(place=FOLDER, **options):
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return FAMILY.open(Spec.read(f"net2net:{place}" + (f"?{query}" if query else "")))


def state_of() -> dict[str, torch.Tensor]:
    return dict(torch.load(FILE, weights_only=True)["state_dict"])


def config_of(**changed) -> dict:
    config = yaml.safe_load((FOLDER / "configs" / "project.yaml").read_text())
    config["model"]["params"].update(changed)
    return {**config, "model": {**config["model"], "params": {k: v for k, v in config["model"]["params"].items() if v}}}


def folder_of(path, state=None, config=None) -> Path:
    for name in ("checkpoints", "configs"):
        (path / name).mkdir()
    torch.save({"state_dict": state_of() if state is None else state}, path / "checkpoints" / "last.ckpt")
    (path / "configs" / "project.yaml").write_text(yaml.safe_dump(config_of() if config is None else config))
    return path


# --- draws


def test_company_and_order_change_no_draw():
    model = open_at()
    together = model.generate(CONCEPT, IDS, 3)
    alone = torch.cat([model.generate(CONCEPT[[i]], [IDS[i]], 3) for i in range(5)])
    backwards = model.generate(CONCEPT.flip(0), IDS[::-1], 3).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)
    assert together.shape == (5, 4, 4)
    assert 0 <= together.min() <= together.max() < model.k


def test_the_seed_the_image_and_the_concept_decide_a_draw():
    model = open_at()
    one = model.generate(CONCEPT[:1], ["a"], 0)
    assert torch.equal(one, open_at().generate(CONCEPT[:1], ["a"], 0))
    for other in ((CONCEPT[:1], ["a"], 1), (CONCEPT[:1], ["b"], 0), (CONCEPT[1:2], ["a"], 0)):
        assert not torch.equal(one, model.generate(*other))


def test_many_images_are_drawn_in_turns_and_come_out_the_same(monkeypatch):
    together = open_at().generate(CONCEPT, IDS, 3)
    batches = []
    once = net2net.Net2NetModel._drawn
    monkeypatch.setattr(net2net, "MOST_CACHED", 2 * 2 * 8 * 2 * 16 * 32)
    monkeypatch.setattr(net2net.Net2NetModel, "_drawn", lambda *given: batches.append(len(given[2])) or once(*given))
    assert torch.equal(open_at().generate(CONCEPT, IDS, 3), together)
    assert batches == [2, 2, 1]


def test_no_image_is_an_empty_grid():
    assert open_at().generate(CONCEPT[:0], [], 0).shape == (0, 4, 4)


def test_the_options_of_sampling_change_draws_and_the_identity():
    plain = open_at()
    drawn, known = plain.generate(CONCEPT, IDS, 0), {plain.identity}
    for options in ({"temperature": 0.3}, {"top_k": 3}, {"top_p": 0.2}):
        model = open_at(**options)
        assert not torch.equal(model.generate(CONCEPT, IDS, 0), drawn)
        known.add(model.identity)
    assert len(known) == 4
    assert open_at(temperature="1.0").identity == plain.identity


def test_the_identity_covers_the_transformer_and_the_first_stage(tmp_path):
    known = {open_at().identity}
    for number, key in enumerate(("transformer.head.weight", "first_stage_model.quant_conv.bias")):
        state = state_of()
        state[key] = state[key] + 1
        place = tmp_path / str(number)
        place.mkdir()
        known.add(open_at(folder_of(place, state)).identity)
    assert len(known) == 3


def test_a_vocabulary_larger_than_the_codebook_draws_codes_only(tmp_path):
    state = state_of()
    for key in ("transformer.tok_emb.weight", "transformer.head.weight"):
        state[key] = torch.cat([state[key], 40 * state[key][:6]])
    config = config_of()
    config["model"]["params"]["transformer_config"]["params"]["vocab_size"] = 70
    model = open_at(folder_of(tmp_path, state, config))
    assert model.generate(CONCEPT, IDS, 0).max() < 64


def test_codes_numbered_anew_are_shown_as_rows_of_the_codebook(tmp_path):
    used = torch.arange(63, 3, -1)  # fewer than the vocabulary has: what lies beyond stands for "none of these"
    model = open_at(folder_of(tmp_path, {**state_of(), "first_stage_model.quantize.used": used}))
    plain = open_at().generate(CONCEPT, IDS, 0)
    assert (plain >= 60).any()
    assert torch.equal(model.generate(CONCEPT, IDS, 0), torch.where(plain >= 60, 63, 63 - plain))


def test_a_sequence_in_another_order_is_put_back_on_the_grid(tmp_path):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    buffers = {"permuter.forward_shuffle_idx": order, "permuter.backward_shuffle_idx": order.argsort()}
    model = open_at(folder_of(tmp_path, {**state_of(), **buffers}))
    plain = open_at().generate(CONCEPT, IDS, 0)
    assert torch.equal(model.generate(CONCEPT, IDS, 0).flatten(1)[:, order], plain.flatten(1))


def test_a_bias_follows_the_code_into_another_order_and_numbering(tmp_path):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    used = torch.arange(63, 3, -1)
    more = {
        "permuter.forward_shuffle_idx": order,
        "permuter.backward_shuffle_idx": order.argsort(),
        "first_stage_model.quantize.used": used,
    }
    model, plain = open_at(folder_of(tmp_path, {**state_of(), **more})), open_at()
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(64, 4, 4, generator=generator)
    # Token t stands for code 63 - t at the grid's position order[i] for sequence position i.
    tokens = (
        bias[torch.where(torch.arange(64) < 60, 63 - torch.arange(64), 63)].flatten(1)[:, order].unflatten(1, (4, 4))
    )
    drawn = plain.with_code_bias(tokens).generate(CONCEPT, IDS, 0).flatten(1)
    shown = torch.where(drawn >= 60, 63, 63 - drawn)
    assert torch.equal(model.with_code_bias(bias).generate(CONCEPT, IDS, 0).flatten(1)[:, order], shown)


def test_a_bias_that_leaves_only_codes_it_never_draws_is_refused(tmp_path):
    model = open_at(folder_of(tmp_path, {**state_of(), "first_stage_model.quantize.used": torch.arange(4, 64)}))
    bias = torch.zeros(64, 4, 4)
    bias[4:, 1, 2] = -torch.inf
    with pytest.raises(ConfigError, match=r"leaves no code at position \(1, 2\)"):
        model.with_code_bias(bias)


def test_guided_draws_take_a_bias_without_nan():
    model, concept = open_at(guidance=2, empty=10), CONCEPT.clamp(max=9)
    before = model.generate(concept, IDS, 0)
    bias = torch.zeros(64, 4, 4)
    bias[before[0, 0, 0], 0, 0] = -torch.inf
    after = model.with_code_bias(bias).generate(concept, IDS, 0)
    assert (after[:, 0, 0] != before[0, 0, 0]).all()
    assert torch.equal(model.with_code_bias(torch.zeros(64, 4, 4)).generate(concept, IDS, 0), before)


def likelihood(model, tokens):
    return model.log_probabilities(tokens, CONCEPT).gather(1, tokens[:, None]).sum((1, 2, 3))


def test_log_probabilities_are_those_of_the_tokens_one_by_one():
    model = open_at()
    tokens = model.generate(CONCEPT, IDS, 0)
    found = model.log_probabilities(tokens, CONCEPT)
    assert found.shape == (len(IDS), model.k, *model.grid)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(tokens.shape))
    flat = tokens.flatten(1)
    logits = model.next_logits(CONCEPT, flat[:, :-1], cached=True)[..., : model.k]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), logits.log_softmax(2), atol=1e-4, rtol=1e-4)


def test_a_grid_is_as_likely_in_another_order_or_with_codes_numbered_anew(tmp_path):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    buffers = {"permuter.forward_shuffle_idx": order, "permuter.backward_shuffle_idx": order.argsort()}
    plain = open_at()
    tokens = plain.generate(CONCEPT, IDS, 0)
    turned = open_at(folder_of(tmp_path, {**state_of(), **buffers}))
    torch.testing.assert_close(likelihood(turned, turned.generate(CONCEPT, IDS, 0)), likelihood(plain, tokens))
    place = tmp_path / "anew"
    place.mkdir()
    used = torch.arange(63, -1, -1)
    anew = open_at(folder_of(place, {**state_of(), "first_stage_model.quantize.used": used}))
    torch.testing.assert_close(likelihood(anew, 63 - tokens), likelihood(plain, tokens))


def test_codes_that_are_never_drawn_are_infinitely_unlikely(tmp_path):
    used = torch.arange(63, 3, -1)
    model = open_at(folder_of(tmp_path, {**state_of(), "first_stage_model.quantize.used": used}))
    found = model.log_probabilities(model.generate(CONCEPT, IDS, 0), CONCEPT)
    assert (found[:, :4] == -torch.inf).all()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(IDS), *model.grid))


def test_the_cache_sees_what_the_whole_sequence_shows():
    torch.manual_seed(0)
    transformer = Transformer(TransformerSizes(vocabulary=9, positions=6, width=8, layers=3, heads=2)).double()
    torch.nn.init.normal_(transformer.pos_emb)
    tokens = torch.randint(0, 9, (4, 6))
    with torch.no_grad():
        cache = net2net.Cache(transformer.sizes, 4, transformer.pos_emb)
        steps = torch.stack([transformer.step(one, cache) for one in tokens.unbind(1)], 1)
        torch.testing.assert_close(steps, transformer(tokens), rtol=0, atol=1e-12)


# --- guidance


def test_guidance_changes_draws_and_the_identity_and_nothing_else_does():
    plain, spared = open_at(), open_at(empty=10)
    concept = CONCEPT.clamp(max=9)
    drawn = plain.generate(concept, IDS, 0)
    assert torch.equal(spared.generate(concept, IDS, 0), drawn)
    assert (len(plain.concepts), len(spared.concepts)) == (11, 10)
    known = {plain.identity, spared.identity}
    for options in ({"guidance": 3, "empty": 10}, {"guidance": 0.5, "empty": 10}, {"guidance": 3, "empty": 9}):
        model = open_at(**options)
        assert not torch.equal(
            model.generate(concept.clamp(max=8), IDS, 0), plain.generate(concept.clamp(max=8), IDS, 0)
        )
        known.add(model.identity)
    assert len(known) == 5


def test_without_guidance_the_identity_is_what_it_always_was():
    assert open_at().identity[:12] == "61d5f7f4f42a"
    assert open_at(top_k=5).identity[:12] == open_at(guidance=1, top_k=5).identity[:12] == "9f03d01a65a0"
    assert open_at(guidance=1, empty=10).identity == open_at(empty=10).identity


def test_company_and_turns_change_no_guided_draw(monkeypatch):
    concept = CONCEPT.clamp(max=9)
    together = open_at(guidance=4, empty=10).generate(concept, IDS, 3)
    alone = [open_at(guidance=4, empty=10).generate(concept[[i]], [IDS[i]], 3) for i in range(5)]
    assert torch.equal(torch.cat(alone), together)
    batches = []
    once = net2net.Net2NetModel._drawn
    monkeypatch.setattr(net2net, "MOST_CACHED", 2 * 2 * 2 * 8 * 2 * 16 * 32)
    monkeypatch.setattr(net2net.Net2NetModel, "_drawn", lambda *given: batches.append(len(given[2])) or once(*given))
    assert torch.equal(open_at(guidance=4, empty=10).generate(concept, IDS, 3), together)
    assert batches == [2, 2, 1]  # each with its twin of no class


def test_likelihoods_are_the_model_s_own_whatever_it_draws_with():
    guided, plain = open_at(guidance=4, empty=10, temperature=0.5), open_at()
    tokens = plain.generate(CONCEPT, IDS, 0)
    concept = CONCEPT.clamp(max=9)
    assert torch.equal(guided.log_probabilities(tokens, concept), plain.log_probabilities(tokens, concept))


def test_the_empty_class_is_none_of_the_concepts(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"bird {i}" for i in range(10)))
    model = open_at(classes=names, empty=4)
    assert model.concepts[4] == "bird 4"  # and its token is 5
    assert torch.equal(model.generate(torch.tensor([4]), ["a"], 0), open_at().generate(torch.tensor([5]), ["a"], 0))
    assert open_at(empty=4).concepts[3:5] == ("class 03", "class 05")
    with pytest.raises(ConfigError, match=r"gives 10 names but .* has 11 classes; write"):
        open_at(classes=names)
    assert len(open_at(FILE, heads=4, classes=names, empty=10, guidance=2).concepts) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 2}, r"guidance=2 of model .* needs a class that stands for none.*&empty=10"),
        ({"guidance": 2, "empty": 11}, "empty=11 is no class beside others of .* which has 11, counted from 0"),
        ({"guidance": 0, "empty": 10}, "guidance='0' of model .* is not a number above 0"),
        ({"empty": -1}, "empty='-1' of model .* is not a whole number from 0 up"),
    ],
    ids=["nobody", "beyond", "nothing", "negative"],
)
def test_guidance_without_a_fitting_empty_class_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        open_at(**options)


def test_an_unconditional_model_has_no_empty_class(tmp_path):
    place = folder_of(tmp_path, config=config_of(unconditional=True))
    with pytest.raises(ConfigError, match=r"\?empty= numbers a class, but .* is unconditional"):
        open_at(place, empty=0)
    with pytest.raises(ConfigError, match=r"guidance=2 of model .* needs a class that stands for none"):
        open_at(place, guidance=2)


# --- what can be asked for


def test_it_is_a_generator_and_passes_the_rest_on_to_its_first_stage():
    model = open_at()
    assert isinstance(model, Generator)
    assert generator_of(model) is model
    assert (model.k, model.d, model.size, model.stride, len(model.levels)) == (64, 8, (8, 8), 2, 1)
    assert model.to("cpu").device == torch.device("cpu")
    assert sum(one.numel() for one in model.module.parameters()) > sum(
        one.numel() for one in model.first.module.parameters()
    )
    assert torch.equal(model.nearest(model.embed(EXPECTED["tokens"])), EXPECTED["tokens"])
    with pytest.raises(ModelError, match="cannot logits"):
        model.logits(EXPECTED["pixels"])


def test_names_of_classes_come_from_a_file(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"bird {i}" for i in range(11)) + "\n\n")
    model = open_at(classes=names)
    assert model.concepts[3] == "bird 3"
    assert model.identity != open_at().identity
    assert torch.equal(model.generate(CONCEPT, IDS, 0), open_at().generate(CONCEPT, IDS, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\nb\n", "gives 2 names but .* has 11 classes"), ("a\n" * 11, "names 'a' twice"), (None, "cannot be read")],
    ids=["count", "twice", "absent"],
)
def test_names_that_do_not_fit_are_refused(tmp_path, text, message):
    names = tmp_path / "names.txt"
    if text is not None:
        names.write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_at(classes=names)


def test_without_a_config_the_vocabulary_or_the_names_say_how_many_classes_there_are(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    assert len(open_at(FILE, heads=4).concepts) == 64
    assert open_at(FILE, heads=4, classes=names).concepts == ("a", "b", "c")


def test_without_a_config_the_positions_say_the_size():
    model = open_at(FILE, heads=4)
    assert model.size == (8, 8)
    assert torch.equal(model.generate(CONCEPT, IDS, 0), open_at().generate(CONCEPT, IDS, 0))


@pytest.mark.parametrize(
    "stage",
    [{"unconditional": True, "sos_token": 5}, {"cond_stage_config": "__is_unconditional__", "sos_token": 5}],
    ids=["flag", "stage"],
)
def test_an_unconditional_model_has_one_concept_and_its_token_in_front(tmp_path, stage):
    model = open_at(folder_of(tmp_path, config=config_of(**stage)))
    assert model.concepts == ("unconditional",)
    five = torch.full((5,), 5)
    assert torch.equal(model.generate(torch.zeros(5, dtype=torch.long), IDS, 0), open_at().generate(five, IDS, 0))


def test_an_unconditional_model_takes_no_names_and_needs_a_token_it_has(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\n")
    place = tmp_path / "model"
    place.mkdir()
    folder_of(place, config=config_of(unconditional=True))
    with pytest.raises(ConfigError, match="is unconditional: leave it out"):
        open_at(place, classes=names)
    (place / "configs" / "project.yaml").write_text(yaml.safe_dump(config_of(unconditional=True, sos_token=99)))
    with pytest.raises(ModelError, match=r"sos_token=99 where one of \[0, 63\]"):
        open_at(place)


# --- what cannot be drawn


@pytest.mark.parametrize(
    "stage",
    [
        {"target": "taming.models.vqgan.VQModel", "params": {}},
        {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 1024, "down_factor": 16}},
        "__is_first_stage__",
        None,
    ],
    ids=["depth", "coordinates", "itself", "none"],
)
def test_a_model_conditioned_on_an_image_encodes_and_decodes_and_says_why_it_draws_nothing(tmp_path, stage):
    model = open_at(folder_of(tmp_path, config=config_of(cond_stage_config=stage, cond_stage_key="depth")))
    assert torch.equal(model.encode(EXPECTED["pixels"]), EXPECTED["tokens"])
    assert GENERATE not in model.abilities
    assert model.concepts == ()
    with pytest.raises(ModelError, match="cannot generate: its transformer wants the tokens of 'depth'"):
        model.generate(CONCEPT, IDS, 0)
    with pytest.raises(ConfigError, match="cannot generate images; encode real ones"):
        generator_of(model)


def test_images_larger_than_the_transformer_can_be_encoded_and_not_drawn():
    model = open_at(size=16)
    assert model.encode(torch.rand(1, 3, 16, 16)).shape == (1, 8, 8)
    with pytest.raises(ModelError, match=r"8x8 tokens and its transformer goes no further than 16.*\?size=8"):
        model.generate(CONCEPT, IDS, 0)


def test_an_order_for_another_grid_is_refused(tmp_path):
    model = open_at(folder_of(tmp_path, {**state_of(), "permuter.backward_shuffle_idx": torch.arange(9)}))
    with pytest.raises(ModelError, match="reads grids of 9 tokens"):
        model.generate(CONCEPT, IDS, 0)


def test_positions_that_see_each_other_are_refused(tmp_path):
    config = config_of()
    config["model"]["params"]["transformer_config"]["params"]["n_unmasked"] = 4
    with pytest.raises(ModelError, match="n_unmasked"):
        open_at(folder_of(tmp_path, config=config)).generate(CONCEPT, IDS, 0)


def test_concepts_that_there_are_not_are_refused():
    with pytest.raises(ConfigError, match=r"concepts span \[0, 11\] but .* has \[0, 10\], 'class 00' to 'class 10'"):
        open_at().generate(torch.tensor([0, 11]), ["a", "b"], 0)
    with pytest.raises(ConfigError, match=r"5 concept\(s\) for 2 image id\(s\)"):
        open_at().generate(CONCEPT, ["a", "b"], 0)


# --- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature='0' of model .* is not a number above 0"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"temperature": "inf"}, "temperature='inf'"),
        ({"top_k": 0}, "top_k='0' of model .* is not a whole number from 1 up"),
        ({"top_k": 2.5}, r"top_k='2\.5'"),
        ({"top_p": 1.5}, r"top_p=1\.5 of model .* is a probability"),
        ({"top_p": -1}, "top_p='-1'"),
        ({"heads": "x"}, "heads='x'"),
        ({"beam": 3}, "no option 'beam'"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        open_at(**options)


def test_heads_are_asked_for_where_nothing_tells_them():
    with pytest.raises(ModelError, match=r"number of attention heads no tensor tells.*\?heads=16"):
        open_at(FILE)
    with pytest.raises(ModelError, match="5 attention heads do not divide the width 32"):
        open_at(FILE, heads=5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 128, r"(?s)'tok_emb\.weight' has shape \(64, 32\).*\(128, 32\).*the transformer"),
        ("block_size", 64, r"(?s)'pos_emb' has shape \(1, 16, 32\).*\(1, 64, 32\)"),
        ("n_layer", 3, r"(?s)lacks .*'blocks\.2\.ln1\.weight'"),
        ("n_embd", 64, r"(?s)has shape .*project\.yaml"),
        ("n_head", "x", "n_head='x' where a whole number"),
        ("n_head", 5, "5 attention heads do not divide"),
    ],
)
def test_a_transformer_s_config_for_another_model_is_named(tmp_path, key, value, message):
    config = config_of()
    config["model"]["params"]["transformer_config"]["params"][key] = value
    with pytest.raises(ModelError, match=message):
        open_at(folder_of(tmp_path, config=config))


def test_more_classes_than_rows_are_refused(tmp_path):
    stage = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 65}}
    with pytest.raises(ModelError, match=r"65 classes do not fit the transformer .* 64 rows"):
        open_at(folder_of(tmp_path, config=config_of(cond_stage_config=stage)))


def test_a_vocabulary_smaller_than_the_codebook_is_refused(tmp_path):
    state, config = state_of(), config_of()
    for key in ("transformer.tok_emb.weight", "transformer.head.weight"):
        state[key] = state[key][:60]
    config["model"]["params"]["transformer_config"]["params"]["vocab_size"] = 60
    with pytest.raises(ModelError, match="transformer knows 60 tokens but the first stage has 64 codes"):
        open_at(folder_of(tmp_path, state, config))


def test_a_vqgan_s_config_is_refused(tmp_path):
    config = {"model": config_of()["model"]["params"]["first_stage_config"]}
    with pytest.raises(ModelError, match=r"has no transformer_config; open a VQGAN alone as taming:"):
        open_at(folder_of(tmp_path, config=config))


def test_a_strange_part_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"1 key\(s\) that belong to no part .*'head\.bias'"):
        open_at(folder_of(tmp_path, {**state_of(), "head.bias": torch.zeros(1)}))


def test_missing_unexpected_and_nan_weights_are_named(tmp_path):
    def model(number, state):
        (tmp_path / str(number)).mkdir()
        return folder_of(tmp_path / str(number), state)

    missing, extra, broken = state_of(), state_of(), state_of()
    del missing["transformer.ln_f.bias"]
    extra["transformer.blocks.0.attn.bias"] = torch.zeros(1)
    broken["transformer.head.weight"][0, 0] = math.inf
    for number, (state, message) in enumerate(
        [(missing, r"ln_f\.bias"), (extra, r"blocks\.0\.attn\.bias"), (broken, r"'head\.weight' are NaN or infinite")]
    ):
        with pytest.raises(ModelError, match=message):
            open_at(model(number, state))


def test_a_bare_file_without_a_transformer_is_named():
    with pytest.raises(ModelError, match=r"no part of a Net2NetTransformer"):
        open_at(DATA / "taming_ema" / "checkpoints" / "last.ckpt", heads=4)


def test_a_wrong_axis_of_the_table_is_named(tmp_path):
    torch.save({"state_dict": {**state_of(), "transformer.pos_emb": torch.zeros(16, 32)}}, tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match=r"'transformer\.pos_emb' has shape \(16, 32\) where 3 axes"):
        open_at(tmp_path / "model.ckpt", heads=4)


def test_a_truncated_file_is_refused(tmp_path):
    folder_of(tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ModelError, match=r"last\.ckpt"):
        open_at(tmp_path)


# --- what is recognised


def test_nothing_else_is_taken_for_one():
    kinds = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}
    looked_at = [path for folder in sorted(DATA.iterdir()) if folder.is_dir() and folder.name != "taming_net2net"
                 for path in (folder, *sorted(folder.rglob("*")))
                 if path.is_dir() or (path.suffix in kinds and path.name != "expected.safetensors")]  # fmt: skip
    assert len(looked_at) > 6
    assert [path for path in looked_at if recognise_net2net(Files(path))] == []


def test_a_transformer_of_another_project_with_the_same_name_is_left_alone(tmp_path):
    config = config_of()
    config["model"] = {"class_path": "src.Open_MAGVIT2.models.cond_transformer.Net2NetTransformer", "init_args": {}}
    assert recognise_net2net(Files(folder_of(tmp_path, config=config))) is None


# --- live models


class Part(torch.nn.Module):
    """A module that has whatever it is given."""

    def __init__(self, state) -> None:
        super().__init__()
        self.state = state

    def state_dict(self):
        return self.state


def live(stage, **more):
    kind = type("Net2NetTransformer", (Part,), {"__module__": "taming.models.cond_transformer"})
    model = kind(state_of())
    model.transformer = SimpleNamespace(config=SimpleNamespace(n_head=4))
    model.first_stage_model = SimpleNamespace(encoder=SimpleNamespace(resolution=8))
    model.cond_stage_model = stage
    model.cond_stage_key = "depth"
    model.be_unconditional = more.get("be_unconditional", False)
    model.sos_token = more.get("sos_token", 0)
    return model


def stage_of(name, **facts):
    return type(name, (SimpleNamespace,), {})(**facts)


def test_a_live_model_is_wrapped_and_draws_what_the_file_draws():
    model = live(stage_of("Labelator", n_classes=11))
    adapter = wrap_net2net(model)
    assert (adapter.name, adapter.size, adapter.concepts) == ("live:Net2NetTransformer", (8, 8), open_at().concepts)
    assert adapter.identity == open_at().identity
    assert adapter.transformer.head.weight.data_ptr() == model.state["transformer.head.weight"].data_ptr()
    assert torch.equal(adapter.generate(CONCEPT, IDS, 0), open_at().generate(CONCEPT, IDS, 0))


def test_a_live_unconditional_or_image_conditioned_model_is_known_as_such():
    assert wrap_net2net(live(stage_of("SOSProvider"), be_unconditional=True)).concepts == ("unconditional",)
    with pytest.raises(ModelError, match=r"wants the tokens of 'depth' \(VQModel\) in front"):
        wrap_net2net(live(stage_of("VQModel"))).generate(CONCEPT, IDS, 0)


def test_other_live_objects_are_left_alone():
    assert wrap_net2net(object()) is None
