"""diffusers VQModel in its three forms against the numbers that the library itself computed, and every known trap."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqcortex.adapters import load_model
from vqcortex.adapters.diffusers import STEM

DATA = Path(__file__).parents[1] / "data" / "golden"
FORMS = {
    "diffusers_vqmodel": ("", 16),
    "diffusers_amused_vqmodel": ("#vqvae", 32),
    "diffusers_movq": ("", 16),
}  # fmt: skip
close = dict(rtol=0, atol=1e-4)


def opened(form, **options):
    component, size = FORMS[form]
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return load_model(f"diffusers:{DATA / form}{component}?size={size}{more}")


def expected_of(form):
    return load_file(DATA / form / "expected.safetensors")


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def case(form):
    return opened(form), expected_of(form)


def copy_of(form, to):
    """The model's own folder, to be changed."""
    return shutil.copytree(DATA / form / FORMS[form][0].removeprefix("#"), to)


# --- the numbers


@torch.no_grad()
def test_encoding_is_the_library_s(case):
    model, expected = case
    image = model.network.prepare(expected["pixels"])
    torch.testing.assert_close(image, expected["image"], **close)
    torch.testing.assert_close(model.network.encode(image), expected["prequant"], **close)
    assert torch.equal(model.encode(expected["pixels"]), expected["tokens"])
    assert torch.equal(model.nearest(expected["prequant"]), expected["tokens"])


@torch.no_grad()
def test_decoding_is_the_library_s(case):
    model, expected = case
    torch.testing.assert_close(model.codebook, expected["codebook"], **close)
    embedded = model.embed(expected["tokens"])
    torch.testing.assert_close(embedded, expected["quantized"], **close)
    torch.testing.assert_close(model.network.decode(embedded), expected["decoded"], **close)
    torch.testing.assert_close(model.decode(embedded), expected["decoded_pixels"], **close)


@torch.no_grad()
def test_decoding_latents_is_encoding_and_decoding(case):
    model, expected = case
    embedded = model.embed(model.nearest(expected["prequant"]))
    torch.testing.assert_close(model.network.decode(embedded), expected["decoded_from_latents"], **close)


@torch.no_grad()
def test_the_library_s_own_call_agrees(form, case):
    model, expected = case
    official, codes = model.network.model, expected["quantized"]
    if official.config.lookup_from_codebook:  # then it takes integer ids where it says latents
        b, d, h, w = codes.shape
        found = official.decode(expected["tokens"].flatten(), force_not_quantize=True, shape=(b, h, w, d)).sample
        with pytest.raises(RuntimeError, match=r"Expected tensor for argument #1 'indices'"):
            official.decode(codes, force_not_quantize=True, shape=(b, h, w, d))
    else:
        found = official.decode(codes, force_not_quantize=True).sample
    torch.testing.assert_close(model.network.decode(codes), found, rtol=0, atol=1e-5)


# --- traps


def test_what_is_decoded_is_not_quantized_again(case):
    model, expected = case
    embedded = (expected["quantized"][:1] + 1e-3).requires_grad_()
    pixels = model.decode(embedded)
    assert not torch.equal(pixels, model.decode(expected["quantized"][:1]))
    (gradient,) = torch.autograd.grad(pixels.square().sum(), embedded)
    assert gradient.abs().amax(1).gt(0).all()


def test_the_range_of_amused_is_not_that_of_the_others():
    form = "diffusers_amused_vqmodel"
    expected = expected_of(form)
    assert expected["image"].min() >= 0
    signed = opened(form, pixels="signed")
    assert (signed.encode(expected["pixels"]) != expected["tokens"]).double().mean() > 0.2
    assert signed.identity != opened(form).identity
    with torch.no_grad():
        assert (signed.decode(expected["quantized"]) - expected["decoded_pixels"]).abs().max() > 0.1


@torch.no_grad()
def test_the_norms_of_movq_see_the_codes_before_post_quant_conv():
    form = "diffusers_movq"
    model, expected = opened(form), expected_of(form)
    inner, codes = model.network.model, expected["quantized"]
    after = inner.post_quant_conv(codes)
    assert (inner.decoder(after, after) - expected["decoded"]).abs().max() > 0.1


def test_force_upcast_asks_for_float32_arithmetic():
    assert opened("diffusers_amused_vqmodel", dtype="bfloat16").dtype == torch.float32
    assert opened("diffusers_vqmodel", dtype="bfloat16").dtype == torch.bfloat16


def test_the_scaling_factor_is_no_part_of_the_model(tmp_path):
    folder = copy_of("diffusers_vqmodel", tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scaling_factor": 7.0}))
    same = load_model(f"diffusers:{folder}?size=16")
    assert same.identity == opened("diffusers_vqmodel").identity


@torch.no_grad()
def test_attention_layers_may_have_their_old_names(form, tmp_path):
    folder = copy_of(form, tmp_path / "copy")
    (file,) = folder.glob(f"{STEM}*")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    renamed = {}
    for key, tensor in tensors.items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        renamed[key] = tensor
    assert (set(renamed) == set(tensors)) == (form == "diffusers_amused_vqmodel")  # it has no attention
    save_file(renamed, file)
    size = FORMS[form][1]
    assert load_model(f"diffusers:{folder}?size={size}").identity == opened(form).identity


def test_half_precision_on_disk_is_widened():
    model = opened("diffusers_movq")
    file = DATA / "diffusers_movq" / f"{STEM}.fp16.safetensors"
    assert {one.dtype for one in load_file(file).values()} == {torch.float16}
    assert model.dtype == torch.float32
