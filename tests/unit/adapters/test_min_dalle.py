"""min-dalle's detokenizer: its file, and what is said of broken ones."""

import pytest
import torch
from damage import SAID, cut_short, damaged, said
from parity.golden import DATA
from torch import nn

from vqcortex.adapters import load_model
from vqcortex.adapters.family import Files
from vqcortex.adapters.min_dalle import EPSILON, DetokerNetwork, build_detoker, recognise, wrap
from vqcortex.adapters.taming import Sizes, decoder_sizes
from vqcortex.errors import ConfigError, ModelError

FILE = DATA / "min_dalle" / "vqgan" / "detoker.pt"
TENSORS = torch.load(FILE, weights_only=True)


def saved(folder, tensors):
    torch.save(tensors, folder / "detoker.pt")
    return folder / "detoker.pt"


@pytest.mark.parametrize("how", SAID)
def test_a_damaged_file_is_refused_by_name(tmp_path, how):
    key = "decoder.up.1.attn.0.v.bias"
    path = saved(tmp_path, damaged(TENSORS, key, how))
    with pytest.raises(ModelError, match=said(how, key)):
        load_model(f"min-dalle:{path}")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"detoker\.pt' cannot be read"):
        load_model(f"min-dalle:{cut_short(FILE, tmp_path / 'detoker.pt')}")


def test_another_familys_file_is_refused():
    with pytest.raises(ModelError, match=r"has no key 'post_quant_conv\.weight'"):
        load_model(f"min-dalle:{DATA / 'maskgit_vqgan' / 'maskgit-vqgan-tiny.bin'}")


def test_a_table_of_another_width_is_refused(tmp_path):
    path = saved(tmp_path, TENSORS | {"embedding.weight": torch.zeros(64, 7)})
    with pytest.raises(ModelError, match="has codes of 7 numbers but the latent has 8 channels"):
        load_model(f"min-dalle:{path}")


def test_a_folder_without_it_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no vqgan/detoker\.pt or detoker\.pt"):
        load_model(f"min-dalle:{tmp_path}")


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="has no option 'pixels'; known: "):
        load_model(f"min-dalle:{FILE}?pixels=signed")


def test_the_network_says_where_an_encoder_is():
    with pytest.raises(ModelError, match="hold no encoder; open the whole model with vqgan-jax:"):
        load_model(FILE).network.choose(torch.zeros(1, 3, 8, 8))


def test_released_sizes_are_read_from_shapes(tmp_path):
    sizes = Sizes(
        widths=(128, 128, 256, 256, 512),
        blocks=2,
        attention=(False, False, False, False, True),
        z_channels=256,
        epsilon=EPSILON,
    )
    with torch.device("meta"):
        network = DetokerNetwork(sizes, 16384, 256)
    found = decoder_sizes(network.state_dict(), tmp_path)
    assert (found.widths, found.blocks, found.attention) == (sizes.widths, 2, sizes.attention)
    assert (found.z_channels, found.stride) == (256, 16)
    # As the official decoder has them: three blocks a level, attention after each in the last level.
    assert "decoder.up.4.attn.2.q.weight" in network.state_dict()
    assert "decoder.up.3.attn.0.q.weight" not in network.state_dict()


def test_a_live_module_is_wrapped_and_shares_its_weights():
    kind = type("VQGanDetokenizer", (nn.Module,), {"__module__": "min_dalle.models.vqgan_detokenizer"})
    found, inner = kind(), build_detoker(TENSORS, FILE)
    found.embedding, found.post_quant_conv, found.decoder = inner.embedding, inner.post_quant_conv, inner.decoder
    model = wrap(found)
    assert (model.name, model.k) == ("live:VQGanDetokenizer", 64)
    assert model.network.codes.weight.data_ptr() == inner.codes.weight.data_ptr()


def test_other_live_modules_are_not_wrapped():
    assert wrap(nn.Linear(1, 1)) is None


def test_a_folder_of_something_else_is_not_recognised(tmp_path):
    assert recognise(Files(tmp_path)) is None
    saved(tmp_path, TENSORS | {"encoder.conv_in.weight": torch.zeros(1)})
    assert recognise(Files(tmp_path)) is None
