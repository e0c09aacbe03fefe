"""Open-MAGVIT2 and IBQ: two sets of weights, configs, the choice of codes, and what is said of broken files."""

import shutil

import pytest
import torch
import yaml
from damage import SAID, cut_short, damaged, said
from parity.golden import DATA
from torch import nn

from vqcortex.adapters import load_model, taming
from vqcortex.adapters.family import Files
from vqcortex.adapters.open_magvit2 import (
    EMA,
    IndexNetwork,
    LookupFreeNetwork,
    Sizes,
    build_network,
    chosen_weights,
    largest_products,
    recognise,
    sizes_of,
    wrap,
)
from vqcortex.errors import ConfigError, ModelError, ShapeError

FOLDER = DATA / "open_magvit2"
FILE = FOLDER / "last.ckpt"
YAML = FOLDER / "imagenet_lfqgan_tiny.yaml"
TENSORS = torch.load(FILE, weights_only=True)["state_dict"]
RAW = {key: one for key, one in TENSORS.items() if not key.startswith(EMA)}
CONFIG = yaml.safe_load(YAML.read_text())


def saved(folder, tensors, name="last.ckpt"):
    torch.save({"state_dict": tensors}, folder / name)
    return folder / name


def configured(folder, name="model.yaml", class_path=CONFIG["model"]["class_path"], ddconfig=None, **changed):
    """A config like the golden one, with some of it changed."""
    said = CONFIG["model"]["init_args"]
    init = {**said, **changed, "ddconfig": {**said["ddconfig"], **(ddconfig or {})}}
    (folder / name).write_text(yaml.safe_dump({"model": {"class_path": class_path, "init_args": init}}))
    return folder


def averaged(tensors):
    """As the project keeps them: no dots."""
    return {f"{EMA}{key.replace('.', '')}": one for key, one in tensors.items()}


def ibq(seed=0, k=40, d=8):
    sizes = taming.Sizes(widths=(32, 64), blocks=1, attention=(False, True), z_channels=d, ch=32)
    torch.manual_seed(seed)
    found = IndexNetwork(taming.ModelSizes(encoder=sizes, decoder=sizes, k=k, d=d))
    # Lengths that differ by much: the largest product is seldom the nearest code.
    nn.init.normal_(found.codes.weight)
    found.codes.weight.mul_(torch.rand(k, 1) * 3 + 0.1)
    return found.eval().requires_grad_(False)


@pytest.mark.parametrize("how", SAID)
def test_a_damaged_file_is_refused_by_name(tmp_path, how):
    key = "decoder.up.1.upsample.conv1.weight"
    path = saved(tmp_path, damaged(RAW, key, how))
    with pytest.raises(ModelError, match=said(how, key)):
        load_model(f"open-magvit2:{path}")


def test_averaged_weights_that_are_missing_are_not_replaced_by_raw_ones(tmp_path):
    path = saved(tmp_path, {key: one for key, one in TENSORS.items() if key != f"{EMA}encoderconv_outbias"})
    with pytest.raises(ModelError, match=r"lacks 1 of the model's \d+ tensors \('encoder\.conv_out\.bias'\)"):
        load_model(f"open-magvit2:{path}")
    assert load_model(f"open-magvit2:{path}?weights=raw&size=16").identity != load_model(FOLDER).identity


def test_averaged_weights_of_no_layer_are_refused_by_name(tmp_path):
    path = saved(tmp_path, TENSORS | {f"{EMA}encodermore": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"has no place for \('model_ema\.encodermore'\)"):
        load_model(f"open-magvit2:{path}")


def test_what_only_training_needs_is_left_out(tmp_path):
    more = {"loss.discriminator.main.0.weight": torch.zeros(1), f"{EMA}lossdiscriminatormain0weight": torch.zeros(1)}
    path = saved(tmp_path, TENSORS | more)
    assert load_model(f"{path}?size=16").identity == load_model(FOLDER).identity


def test_raw_weights_alone_are_used_where_there_are_no_others(tmp_path):
    path = saved(tmp_path, RAW)
    model, raw = load_model(f"{path}?size=16"), load_model(f"open-magvit2:{FOLDER}?weights=raw")
    assert model.identity == raw.identity
    with pytest.raises(ModelError, match=r"has no averaged weights, .*; open it with \?weights=raw"):
        load_model(f"open-magvit2:{path}?weights=ema")


def test_a_name_without_dots_is_given_its_dots_back():
    chosen = chosen_weights(TENSORS, "ema", FILE)
    assert chosen.keys() == RAW.keys()
    assert chosen["encoder.conv_in.weight"] is TENSORS[f"{EMA}encoderconv_inweight"]


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"last\.ckpt' cannot be read"):
        load_model(f"open-magvit2:{cut_short(FILE, tmp_path / 'last.ckpt')}")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key 'encoder\.down\.0\.block\.0\.conv1\.weight'"):
        load_model(f"open-magvit2:{DATA / 'min_dalle' / 'vqgan' / 'detoker.pt'}")


def test_a_width_that_cannot_be_normalised_is_refused(tmp_path):
    path = saved(tmp_path, RAW | {"encoder.down.1.block.0.conv1.weight": torch.zeros(33, 32, 3, 3)})
    with pytest.raises(ModelError, match="a level of 33 channels cannot be normalised in 32 groups"):
        load_model(f"open-magvit2:{path}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ddconfig": {"ch": 64}}, r"says ch \* ch_mult=\(64, 64\) but the checkpoint's shapes make it \(32, 32\)"),
        ({"ddconfig": {"ch_mult": [1, 1, 2]}}, r"says ch \* ch_mult=\(32, 32, 64\) but"),
        ({"ddconfig": {"num_res_blocks": 4}}, "says num_res_blocks=4 but the checkpoint's shapes make it 1"),
        ({"embed_dim": 18}, "says embed_dim=18 but the checkpoint's shapes make it 6"),
        ({"n_embed": 262144}, "says n_embed=262144 but the checkpoint's shapes make it 64"),
        ({"class_path": "src.IBQ.models.ibqgan.IBQ"}, "but the checkpoint has no table of codes, as Open-MAGVIT2"),
        ({"ddconfig": {"resolution": None}}, "says resolution=None where a whole number from 1 up is needed"),
        ({"ddconfig": {"ch": None}}, "says ch=None where a whole number from 1 up is needed"),
    ],
    ids=["ch", "ch_mult", "blocks", "embed_dim", "n_embed", "class", "resolution", "no ch"],
)
def test_another_models_config_is_refused(tmp_path, changed, message):
    shutil.copy(FILE, tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(f"open-magvit2:{configured(tmp_path, **changed)}")


def test_a_file_takes_the_config_beside_it_if_there_is_but_one(tmp_path):
    shutil.copy(FILE, tmp_path)
    path = configured(tmp_path, "a.yaml", ddconfig={"resolution": 24}) / FILE.name
    (tmp_path / "data.yaml").write_text("data: {}")
    assert load_model(path).size == (24, 24)
    configured(tmp_path, "b.yaml", ddconfig={"resolution": 8})
    assert load_model(path).size == (32, 32)  # 16 tokens a side, as the released models have
    assert load_model(f"open-magvit2:{path}?config={tmp_path / 'b.yaml'}").size == (8, 8)


def test_a_config_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.yaml").write_text("model:\n  target: taming.models.vqgan.VQModel\n  params: {}\n")
    with pytest.raises(ModelError, match=r"other\.yaml' has no model\.class_path of an Open-MAGVIT2 or IBQ tokenizer"):
        load_model(f"open-magvit2:{FILE}?config={tmp_path / 'other.yaml'}")


def test_checkpoints_and_configs_may_be_in_folders_of_their_own(tmp_path):
    for name in ("checkpoints", "configs"):
        (tmp_path / name).mkdir()
    shutil.copy(FILE, tmp_path / "checkpoints" / "epoch=3.ckpt")
    shutil.copy(FILE, tmp_path / "checkpoints" / "last.ckpt")
    configured(tmp_path / "configs")
    assert load_model(tmp_path).identity == load_model(FOLDER).identity


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no \.ckpt or \.safetensors file"):
        load_model(f"open-magvit2:{tmp_path}")


@pytest.mark.parametrize(
    ("option", "message"),
    [("weights=best", "weights='best' of model .* is unknown; known: ema, raw"), ("pixels=1", "no option 'pixels'")],
    ids=["weights", "unknown"],
)
def test_options_it_does_not_know_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        load_model(f"open-magvit2:{FOLDER}?{option}")


def test_one_token_alone_has_no_spread_and_is_refused():
    model = load_model(FOLDER)
    with pytest.raises(ShapeError, match="a code map of 1x1 has no spread"):
        model.decode(model.embed(torch.zeros(1, 1, 1).long()))
    assert model.decode(model.embed(torch.zeros(1, 1, 2).long())).shape == (1, 3, 2, 4)


@pytest.mark.parametrize(("multipliers", "stride"), [((1, 1, 2, 2, 4), 16), ((1, 2, 2, 4), 8)], ids=["256", "128"])
def test_released_sizes_are_read_from_shapes(tmp_path, multipliers, stride):
    sizes = Sizes(first=128, widths=tuple(128 * one for one in multipliers), blocks=4, bits=18)
    with torch.device("meta"):
        network = LookupFreeNetwork(sizes)
    assert sizes_of(network.state_dict(), tmp_path) == sizes
    assert (sizes.stride, network.codes.k) == (stride, 262144)


def test_the_largest_product_wins_whatever_the_lengths():
    network = ibq()
    latents = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    found = largest_products(latents, network.codes.weight)
    slow = torch.zeros(2, 3, 5, dtype=torch.long)
    for b in range(2):
        for row in range(3):
            for column in range(5):
                scores = [float((latents[b, :, row, column] * code).sum()) for code in network.codes.weight]
                slow[b, row, column] = max(range(len(scores)), key=scores.__getitem__)
    assert torch.equal(found.tokens, slow)
    assert not torch.equal(found.tokens, network.codes.nearest(latents).tokens)
    assert not found.doubtful.any()


def test_a_tie_goes_to_the_lower_index_and_is_doubtful():
    found = largest_products(torch.ones(1, 2, 1, 1), torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 2.0]]))
    assert found.tokens.item() == 1
    assert found.doubtful.item()


def test_a_large_table_is_gone_through_in_pieces():
    table = torch.randn(2**21, 2, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    whole = torch.einsum("bdhw,kd->bkhw", latents, table).argmax(1)
    assert torch.equal(largest_products(latents, table).tokens, whole)


def test_an_empty_batch_has_no_tokens():
    assert largest_products(torch.zeros(0, 2, 3, 4), torch.ones(5, 2)).tokens.shape == (0, 3, 4)


def ibq_folder(folder, network):
    """A folder as the project has it, with raw weights that are another model's."""
    saved(folder, {**ibq(seed=1).state_dict(), **averaged(network.state_dict())})
    return configured(
        folder,
        class_path="src.IBQ.models.ibqgan.IBQ",
        ddconfig={"ch_mult": [1, 2], "z_channels": 8},
        embed_dim=8,
        n_embed=40,
    )


@torch.no_grad()
def test_an_ibq_folder_is_known_by_its_config_and_computes_with_averaged_weights(tmp_path):
    network = ibq()
    model = load_model(ibq_folder(tmp_path, network))
    assert (model.family, model.k, model.d, model.size) == ("open-magvit2", 40, 8, (16, 16))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = network.quant_conv(network.encoder(2 * pixels - 1))
    products = torch.einsum("bdhw,kd->bkhw", latents, network.codes.weight)
    tokens = model.encode(pixels)
    assert torch.equal(tokens, products.argmax(1))
    assert not torch.equal(tokens, taming.TableCodes.nearest(network.codes, latents).tokens)
    decoded = network.decoder(network.post_quant_conv(model.embed(tokens)))
    torch.testing.assert_close(model.decode(model.embed(tokens)), ((decoded + 1) / 2).clamp(0, 1))
    raw = load_model(f"open-magvit2:{tmp_path}?weights=raw")
    assert torch.equal(raw.codebook, ibq(seed=1).codes.weight)


def test_an_ibq_file_alone_could_be_of_two_families(tmp_path):
    ibq_folder(tmp_path, ibq())
    (tmp_path / "model.yaml").unlink()
    with pytest.raises(ModelError, match=r"could be of 2 families; write open-magvit2:.* or taming:"):
        load_model(tmp_path / "last.ckpt")


def test_an_ibq_checkpoint_with_the_other_models_config_is_refused(tmp_path):
    ibq_folder(tmp_path, ibq())
    configured(tmp_path)
    with pytest.raises(ModelError, match="but the checkpoint has a table of codes, as IBQ"):
        load_model(f"open-magvit2:{tmp_path}")


def test_a_folder_of_something_else_is_not_recognised(tmp_path):
    assert recognise(Files(tmp_path)) is None
    saved(tmp_path, {"a": torch.zeros(1)})
    assert recognise(Files(tmp_path)) is None
    saved(tmp_path, TENSORS)
    assert "decoder.adaptive.0.gamma.weight" in recognise(Files(tmp_path))


def test_a_live_module_is_wrapped_with_the_weights_it_has_now():
    kind = type("VQModel", (nn.Module,), {"__module__": "src.Open_MAGVIT2.models.lfqgan"})
    found, inner = kind(), build_network(RAW, FILE)
    found.encoder, found.decoder = inner.encoder, inner.decoder
    found.model_ema = nn.Module()
    found.model_ema.register_buffer("encoderconv_inweight", torch.zeros(1))
    model = wrap(found)
    assert model.name == "live:VQModel"
    assert model.network.encoder.conv_in.weight.data_ptr() == inner.encoder.conv_in.weight.data_ptr()


@pytest.mark.parametrize("module", ["taming.models.vqgan", "tests"])
def test_other_live_modules_are_not_wrapped(module):
    assert wrap(type("VQModel", (nn.Module,), {"__module__": module})()) is None
