"""Quantizers of vector-quantize-pytorch: what is refused. What is taken is in tests/parity/test_wrap_quantizers.py."""

import pytest
import torch
from torch import nn

library = pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch")

from vqcortex.adapters.codes import TableCodes  # noqa: E402
from vqcortex.adapters.quantizers import (  # noqa: E402
    BESIDE,
    LibraryQuantizer,
    OwnQuantizer,
    Quantizer,
    library_quantizer,
    table_codes,
)
from vqcortex.adapters.wrap import wrap_model  # noqa: E402
from vqcortex.errors import ModelError  # noqa: E402

SIZE = (8, 12)


def wrapped(quantizer, channels=8):
    return wrap_model(nn.Conv2d(3, channels, 4, 4), quantizer, nn.ConvTranspose2d(channels, 3, 4, 4), size=SIZE)


def test_both_kinds_follow_the_protocol():
    assert isinstance(OwnQuantizer(table_codes(torch.eye(3))), Quantizer)
    found = library_quantizer(library.VectorQuantize(8, 16, heads=2, codebook_dim=4).eval())
    assert isinstance(found, Quantizer)
    assert isinstance(found, LibraryQuantizer)
    assert found.joins == BESIDE
    assert [type(part) for part in found.parts] == [TableCodes] * 2
    assert found.parts[0] is found.parts[1]


def test_objects_of_other_makes_are_left_alone():
    assert library_quantizer(nn.Linear(2, 2)) is None
    assert library_quantizer(library.VectorQuantize) is None
    assert library_quantizer(torch.eye(3)) is None


def test_a_subclass_of_ones_own_is_read_like_its_parent():
    class Mine(library.FSQ):
        pass

    assert wrapped(Mine([4, 5], dim=8)).k == 20


def test_codes_are_shared_with_the_library_not_copied():
    quantizer = library.VectorQuantize(8, 16)
    model = wrapped(quantizer)
    assert model.network.codes.weight.data_ptr() == quantizer._codebook.embed.data_ptr()


VQ, RVQ = library.VectorQuantize, library.ResidualVQ
RESIDUAL = {"dim": 8, "num_quantizers": 2, "codebook_size": 8}
REFUSED = {
    "GroupedResidualVQ is none of the quantizers known here: VectorQuantize, .*; pass a pair": (
        lambda: library.GroupedResidualVQ(groups=2, **RESIDUAL)
    ),
    "VectorQuantize with accept_3d_fmap cannot be read": lambda: VQ(8, 16, accept_3d_fmap=True),
    "VectorQuantize with affine_param cannot be read as a": lambda: VQ(8, 16, affine_param=True),
    "VectorQuantize with vq_bridge cannot be read": lambda: VQ(8, 16, vq_bridge=nn.Linear(8, 8)),
    r"VectorQuantize with kmeans_init has no codes yet \(initted is False\); train": lambda: VQ(
        8, 16, kmeans_init=True
    ),
    "ResidualVQ with implicit_neural_codebook cannot": lambda: RVQ(implicit_neural_codebook=True, **RESIDUAL),
    r"ResidualVQ takes no latents \(2, 8, 2, 3\) .*: Sizes of tensors must match.*accept_image_fmap must fit": (
        lambda: RVQ(accept_image_fmap=True, **RESIDUAL)
    ),
    "FSQ with return_indices=False gives no tokens; make it": lambda: library.FSQ([4, 5], dim=8, return_indices=False),
    r"FSQ takes no latents \(2, 8, 2, 3\) .*expected dimension of 9 but found": lambda: library.FSQ([4, 5], dim=9),
    "LFQ takes no latents .*expected dimension of 9 but re": lambda: library.LFQ(dim=9, codebook_size=16),
}


@pytest.mark.parametrize("message", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_as_codes_is_refused(message):
    with pytest.raises(ModelError, match=message):
        wrapped(REFUSED[message]())


def test_vectors_that_are_changed_after_look_up_are_noticed():
    class Shifted(library.VectorQuantize):
        def forward(self, x):
            quantized, ids, loss = super().forward(x)
            return quantized + 0.25, ids, loss

    with pytest.raises(ModelError, match=r"returns other vectors than the codes of its tokens \(up to 0\.25 apart\)"):
        wrapped(Shifted(8, 16))


def test_ids_that_are_too_many_are_noticed():
    class Twice(library.VectorQuantize):
        def forward(self, x):
            quantized, ids, loss = super().forward(x)
            return quantized, torch.stack([ids, ids], -1), loss

    with pytest.raises(ModelError, match="returned 2 ids per position from 1 codebooks"):
        wrapped(Twice(8, 16))


def test_a_library_that_chooses_otherwise_is_followed_one_image_at_a_time():
    """Codes of other lengths than one under cosine similarity: the longest wins, not the nearest."""
    quantizer = library.VectorQuantize(8, 16, use_cosine_sim=True)
    quantizer._codebook.embed.mul_(torch.arange(1.0, 17)[None, :, None])
    model, pixels = wrapped(quantizer), torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    choice = model.network.choose(2 * pixels - 1)
    assert choice.doubtful.any()
    with torch.no_grad():
        latent = model.network.encode(2 * pixels - 1)
        _, ids, _ = quantizer(latent.flatten(2).transpose(1, 2))
    assert torch.equal(model.encode(pixels), ids.view(4, 2, 3))
