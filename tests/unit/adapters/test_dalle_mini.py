"""Drawing with the min-dalle package: a stand-in with its interface, and the package itself where it is installed.

All weights are random and tiny; no released weights took part.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from damage import SAID, damaged, said
from parity.golden import DATA

from vqcortex.adapters import generator_of, load_model
from vqcortex.adapters.protocol import GENERATE, Adapter, Generator
from vqcortex.errors import ConfigError, DataError, MissingExtra, ModelError
from vqcortex.pipelines.settings import TokensSettings
from vqcortex.pipelines.tokens import make_tokens

FAKE = Path(__file__).parents[2] / "fake_packages"
DETOKER = DATA / "min_dalle" / "vqgan" / "detoker.pt"
WORDS = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "a\u0120red", "bird", "red", "cat"]
K, WIDTH, MIDDLE, LAYERS = 64, 64, 24, 2
IDS = [f"x/{number}" for number in range(3)]
TEXT = {"text_vocab_count": len(WORDS), "text_token_count": 64}


def forget() -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "min_dalle"]:
        del sys.modules[name]


@pytest.fixture
def fake(monkeypatch):
    """The stand-in, importable and not imported yet; what its import switches is switched back in the end."""
    forget()
    before = torch.is_grad_enabled(), torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    monkeypatch.syspath_prepend(str(FAKE))
    yield
    torch.set_grad_enabled(before[0])
    torch.set_num_threads(before[1])
    torch.backends.cudnn.allow_tf32 = before[2]
    forget()


def write(folder: Path, size: str = "mini", k: int = K, codes: int = K) -> Path:
    """A folder as the package keeps it, with random weights of the importable package's own networks."""
    models = importlib.import_module("min_dalle.models")
    same = dict(embed_count=WIDTH, attention_head_count=1, glu_embed_count=MIDDLE, layer_count=LAYERS, device="cpu")
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        networks = {
            "encoder": models.DalleBartEncoder(**same, **TEXT),
            "decoder": models.DalleBartDecoder(**same, image_vocab_count=k),
        }
        table = torch.randn(codes, 8)
    home = folder / f"dalle_bart_{size}"
    home.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        # Louder than at birth, so that prompts make a difference.
        torch.save({key: 3 * value.detach() for key, value in network.state_dict().items()}, home / f"{name}.pt")
    (home / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (home / "merges.txt").write_text("#version: 0.2\nr e\nre d\n")
    tensors = torch.load(DETOKER, weights_only=True)
    (folder / "vqgan").mkdir(exist_ok=True)
    torch.save(tensors | ({} if codes == K else {"embedding.weight": table}), folder / "vqgan" / "detoker.pt")
    return folder


@pytest.fixture
def folder(fake, tmp_path):
    write(tmp_path / "models")
    torch.set_grad_enabled(True)  # our own import above was not guarded
    forget()
    (tmp_path / "prompts.csv").write_text("prompt,group\na red bird,birds\na blue bird,birds\na cat,cats\n")
    return tmp_path / "models"


def opened(folder: Path, options: str = "", size: int = 8) -> Generator:
    return generator_of(load_model(f"min-dalle:{folder}?size={size}&prompts={folder.parent / 'prompts.csv'}{options}"))


def test_a_table_of_prompts_makes_the_decoder_a_generator(folder):
    model = opened(folder)
    assert isinstance(model, Adapter)
    assert model.abilities == {"decode", GENERATE}
    assert model.concepts == ("birds", "cats")
    tokens = model.generate(torch.tensor([0, 1, 1]), IDS, 0)
    assert tokens.shape == (3, 4, 4)
    assert 0 <= int(tokens.min()) < int(tokens.max()) < K
    assert model.decode(model.embed(tokens)).shape == (3, 3, 8, 8)
    assert load_model(model.name).identity == model.identity


def test_without_a_table_it_decodes_only(folder):
    model = load_model(f"min-dalle:{folder}?size=8")
    assert model.abilities == {"decode"}
    with pytest.raises(ConfigError, match=r"top_k= of model .* says how to draw; say what with \?prompts=TABLE"):
        load_model(f"min-dalle:{folder}?size=8&top_k=3")


def test_a_drawing_belongs_to_concept_image_and_seed(folder):
    model = opened(folder)
    concept = torch.tensor([0, 1, 0])
    together = model.generate(concept, IDS, 3)
    alone = torch.cat([model.generate(concept[[i]], [IDS[i]], 3) for i in (2, 0, 1)])
    assert torch.equal(together[[2, 0, 1]], alone)
    assert not torch.equal(together, model.generate(concept, IDS, 4))
    assert not torch.equal(together[0], model.generate(torch.tensor([1]), IDS[:1], 3)[0])
    assert model.generate(torch.zeros(0, dtype=torch.long), [], 0).shape == (0, 4, 4)


def test_nothing_of_the_process_changes(folder):
    state = torch.random.get_rng_state()
    before = torch.is_grad_enabled(), torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    model = opened(folder)
    model.generate(torch.tensor([0]), IDS[:1], 0)
    assert (torch.is_grad_enabled(), torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before
    assert before[0]
    assert torch.equal(torch.random.get_rng_state(), state)
    embedded = model.embed(torch.zeros(1, 4, 4, dtype=torch.long)).requires_grad_()
    model.decode(embedded * 0.3).sum().backward()
    assert embedded.grad is not None


def test_the_stand_in_really_switches_gradients_off(fake):
    importlib.import_module("min_dalle")
    assert not torch.is_grad_enabled()


def test_every_prompt_of_a_group_is_drawn(folder):
    model = opened(folder)
    drawn = {model.prompt_of(0, f"x/{number}", 0) for number in range(30)}
    assert drawn == {"a red bird", "a blue bird"}
    assert model.prompt_of(1, "x/0", 0) == "a cat"
    assert model.prompt_of(0, "x/7", 5) == model.prompt_of(0, "x/7", 5)


def test_guidance_temperature_and_top_k_matter(folder):
    def drawn(options: str) -> torch.Tensor:
        return opened(folder, options).generate(torch.tensor([1]), IDS[:1], 0)

    plain = drawn("&guidance=0.5")
    for options in ("&guidance=1", "&guidance=0.5&temperature=9", "&guidance=0.5&top_k=2"):
        assert not torch.equal(plain, drawn(options)), options
        assert opened(folder, options).identity != opened(folder, "&guidance=0.5").identity
    sure = drawn("&top_k=1")
    assert torch.equal(sure, opened(folder, "&top_k=1").generate(torch.tensor([1]), ["another"], 7))
    assert not torch.equal(sure, opened(folder, "&top_k=1").generate(torch.tensor([0]), IDS[:1], 0))


def test_prompts_are_part_of_the_identity(folder):
    before = opened(folder).identity
    (folder.parent / "prompts.csv").write_text("prompt,group\na red bird,birds\na green bird,birds\na cat,cats\n")
    assert opened(folder).identity != before


def test_the_layout_of_the_hub_is_read_as_well(folder, tmp_path):
    home = folder / "dalle_bart_mini"
    hub = tmp_path / "hub"
    (hub / "vqgan").mkdir(parents=True)
    (folder / "vqgan" / "detoker.pt").rename(hub / "detoker.pt")
    for part in home.iterdir():
        part.rename(hub / f"{part.stem}_mini{part.suffix}")
    assert opened(hub).concepts == ("birds", "cats")


def test_norms_without_scale_and_shift_are_plain(folder):
    path = folder / "dalle_bart_mini" / "decoder.pt"
    tensors = torch.load(path, weights_only=True)
    tensors.pop("final_ln.weight")
    tensors["left.over"] = torch.zeros(1)
    torch.save(tensors, path)
    network = opened(folder).networks["decoder"]
    assert torch.equal(network.final_ln.weight, torch.ones(WIDTH))
    assert not any("left" in name for name in network.state_dict())


def test_two_sizes_in_one_folder_must_be_told_apart(folder):
    write(folder, "mega")
    torch.set_grad_enabled(True)
    with pytest.raises(ConfigError, match=r"holds mini and mega; write \?model=mini, say"):
        opened(folder)
    assert opened(folder, "&model=mega").concepts
    with pytest.raises(ConfigError, match=r"model='maxi' of .* is unknown; write one of mini, mega"):
        opened(folder, "&model=maxi")


@pytest.mark.parametrize("part", ["encoder.pt", "vocab.json", "merges.txt"])
def test_a_folder_without_a_part_says_what_is_wanted(folder, part):
    (folder / "dalle_bart_mini" / part).unlink()
    with pytest.raises(
        ModelError, match=r"has no transformer to draw with: encoder.pt, .* in its folder dalle_bart_mini"
    ):
        opened(folder)


@pytest.mark.parametrize("how", [how for how in SAID if how != "left over"])
def test_damaged_weights_are_refused_by_name(folder, how):
    path, key = folder / "dalle_bart_mini" / "decoder.pt", "layers.1.glu.fc2.weight"
    torch.save(damaged(torch.load(path, weights_only=True), key, how), path)
    with pytest.raises(ModelError, match=said(how, key)):
        opened(folder)


def test_weights_that_would_run_code_are_refused(folder):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, ("touch hacked",)

    (folder / "dalle_bart_mini" / "encoder.pt").write_bytes(pickle.dumps({"embed_tokens.weight": Evil()}))
    with pytest.raises(ModelError, match=r"encoder\.pt"):
        opened(folder)
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocab.json", "[1", "cannot be read"),
        ("vocab.json", "[]", "is no vocabulary of numbered words with <s>, </s>, <unk>"),
        ("vocab.json", '{"<s>": 0, "</s>": 2}', "is no vocabulary"),
        ("vocab.json", '{"<s>": 0, "</s>": 2, "<unk>": "x"}', "is no vocabulary"),
        ("merges.txt", "#version\nr e\nred\n", "line 3 of .*merges.txt' is not two pieces of a word"),
        ("vocab.json", '{"<s>": 0, "</s>": 2, "<unk>": 999}', "has text token 999 but .* knows 34"),
    ],
)
def test_words_that_are_none_are_refused(folder, name, content, words):
    (folder / "dalle_bart_mini" / name).write_text(content)
    with pytest.raises(ModelError, match=words):
        opened(folder)


def test_other_sizes_and_codebooks_are_refused(folder):
    with pytest.raises(ModelError, match=r"have 128x128 tokens but the transformer of .* draws 16; .* \?size=8"):
        load_model(f"min-dalle:{folder}?prompts={folder.parent / 'prompts.csv'}")
    write(folder, k=32)
    torch.set_grad_enabled(True)
    with pytest.raises(ModelError, match="knows 33 tokens but the codebook has 64 codes"):
        opened(folder)
    with pytest.raises(ModelError, match=r"7 attention heads do not divide the width 64"):
        opened(folder, "&heads=7")


@pytest.mark.parametrize("options", ["&top_k=0", "&temperature=-1", "&guidance=x", "&heads=two"])
def test_options_that_are_no_numbers_are_refused(folder, options):
    with pytest.raises(ConfigError, match=r"is not a (whole )?number"):
        opened(folder, options)


def test_a_prompt_without_a_known_letter_is_refused(folder):
    (folder.parent / "prompts.csv").write_text("prompt\nкрасная птица\na cat\n", encoding="utf-8")
    with pytest.raises(DataError, match="prompt 'красная птица' has no letter that"):
        opened(folder)


def test_a_long_prompt_is_cut_and_unknown_concepts_are_refused(folder):
    (folder.parent / "prompts.csv").write_text(f"prompt\n{'very long ' * 30}\na cat\n")
    model = opened(folder)
    assert model.generate(torch.tensor([1]), IDS[:1], 0).shape == (1, 4, 4)
    with pytest.raises(ConfigError, match=r"concepts span \[0, 2\] but .* has \[0, 1\]"):
        model.generate(torch.tensor([0, 2]), IDS[:2], 0)
    with pytest.raises(ConfigError, match=r"1 concept\(s\) for 2 image id\(s\)"):
        model.generate(torch.tensor([0]), IDS[:2], 0)


def test_without_the_package_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "min_dalle", None)
    with pytest.raises(MissingExtra, match=r"needs the min-dalle package .*pip install 'vqcortex\[min-dalle\]'"):
        opened(folder)


def test_generated_data_fills_a_store(folder, tmp_path):
    store = make_tokens(TokensSettings(out=tmp_path / "s", model=opened(folder).name, per_concept=10, shard=10))
    assert (store.manifest.concepts, len(store)) == (("birds", "cats"), 20)
    assert [store.count(split, 0) for split in ("train", "validation", "test")] == [7, 1, 2]


def test_it_moves_and_takes_along_what_the_package_keeps_aside(folder):
    model = opened(folder).to("cpu")
    assert model.networks["encoder"].pose_tokens.device.type == "cpu"
    assert model.to("meta").networks["decoder"].token_indices.device.type == "meta"


@pytest.mark.filterwarnings("ignore:.*autocast")
def test_the_package_itself_draws_the_same_tokens(tmp_path):
    """Greedy, so that random numbers do not matter; 2**14 codes, for the package begins with the last of them."""
    forget()
    if importlib.util.find_spec("min_dalle") is None:
        pytest.skip("min-dalle is not installed")
    (tmp_path / "prompts.csv").write_text("prompt\na red bird\na cat\n")
    try:
        folder = write(tmp_path / "models", k=2**14, codes=2**14)
        torch.set_grad_enabled(True)
        model = opened(folder, "&top_k=1", 32)
        encoder, decoder = model.networks["encoder"], model.networks["decoder"]
        tokenizer = importlib.import_module("min_dalle.text_tokenizer").TextTokenizer
        official = object.__new__(importlib.import_module("min_dalle").MinDalle)
        # What its constructor would have set; it would also have asked the network.
        vars(official).update(
            tokenizer=tokenizer(json.loads((folder / "dalle_bart_mini/vocab.json").read_text()), ["r e", "re d"]),
            encoder=encoder, decoder=decoder, device="cpu", dtype=torch.float32, is_reusable=True,
            text_token_count=64, layer_count=LAYERS, embed_count=WIDTH,
            detokenizer=SimpleNamespace(forward=lambda is_seamless, tokens: tokens.clone()),
        )  # fmt: skip
        for number, prompt in enumerate(model.concepts):
            with torch.no_grad(), torch.random.fork_rng():
                wanted = next(official.generate_raw_image_stream(prompt, 1, 1, top_k=1))
            found = model.generate(torch.tensor([number]), ["x"], 0)
            assert torch.equal(found.flatten(1), wanted)
            assert len(found.unique()) > 3
    finally:
        torch.set_grad_enabled(True)
        forget()
