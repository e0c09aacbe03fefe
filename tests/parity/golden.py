"""Every family against the numbers its official code computed, as one table.

`python tests/parity/golden.py` measures and writes src/vqcortex/adapters/parity.json, from which `vqcortex models` and
docs/families.md are made; test_golden_table.py measures again and fails when the table no longer holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, safe_open

from vqcortex.adapters import families, load_model
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter, join_levels

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "golden"
NUMBERS = ROOT / "src" / "vqcortex" / "adapters" / "parity.json"
PAGE = ROOT / "docs" / "families.md"
START, END = "<!-- measured: python tests/parity/golden.py -->", "<!-- end -->"
LISTED = "<!-- listed: python tests/parity/golden.py -->"


@dataclass(frozen=True)
class Case:
    """One model made by official code: where its files are and how it is opened."""

    title: str
    folder: str
    family: str
    place: str = ""
    options: str = ""

    @property
    def path(self) -> Path:
        return DATA / self.folder / self.place

    def name(self, **more: str) -> str:
        given = "&".join([*filter(None, [self.options]), *(f"{key}={value}" for key, value in more.items())])
        return f"{self.family}:{self.path}" + (f"?{given}" if given else "")


CASES = (
    Case("taming-transformers VQModel", "taming_vqgan", "taming"),
    Case("taming-transformers GumbelVQ", "taming_gumbel", "taming"),
    Case("taming-transformers EMAVQ", "taming_ema", "taming"),
    Case("taming-transformers Net2NetTransformer", "taming_net2net", "net2net"),
    Case("diffusers VQModel", "diffusers_vqmodel", "diffusers", options="size=16"),
    Case("aMUSEd VQModel", "diffusers_amused_vqmodel", "diffusers", "vqvae", "size=32"),
    Case("Kandinsky movq", "diffusers_movq", "diffusers", options="size=16"),
    Case("OpenAI dVAE", "openai_dvae", "openai-dvae", options="size=32"),
    Case("min-dalle detokenizer", "min_dalle", "min-dalle", options="size=8"),
    Case("dalle-mini VQGAN (Flax)", "vqgan_jax", "vqgan-jax"),
    Case("LlamaGen VQ", "llamagen_vq", "llamagen", "vq_ds2_tiny.pt", "size=16"),
    Case("Chameleon VQ-VAE", "hf_chameleon_vqvae", "transformers"),
    Case("Emu3 VQ-VAE", "hf_emu3_vqvae", "transformers", options="size=16"),
    Case("Janus VQ-VAE", "hf_janus_vqvae", "transformers"),
    Case("VQ-VAE-2 (rosinality)", "rosinality_vqvae2", "rosinality", "vqvae_001.pt", "size=32"),
    Case("VQ-VAE (MishaLaskin)", "mishalaskin_vqvae", "mishalaskin", "vqvae_data_tiny.pth", "size=32"),
    Case("VQ-VAE (zalando research)", "zalando_vqvae", "zalando", "model.pt", "size=32"),
    Case("MaskGIT-VQGAN", "maskgit_vqgan", "maskgit", "maskgit-vqgan-tiny.bin", "size=16"),
    Case("VAR multi-scale VQ-VAE", "var_vqvae", "var", "vae_ch32v64z8.pth", "size=16&scales=1,2,3,5,8"),
    Case("Open-MAGVIT2", "open_magvit2", "open-magvit2"),
)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How near a family is to its official code.

    Args:
        family: Name in the FAMILIES registry.
        model: What it is called.
        official: Project and commit, or library and version, that computed the expected numbers.
        tokens: Tokens compared; 0 where there is no encoder.
        tokens_equal: How many of them are equal.
        codes: Largest difference of looked-up codes.
        pixels: Largest difference of decoded pixels, in [0, 1]; None where there is no decoder.
        bfloat16_tokens: Share of tokens that stay the same in bfloat16; None where there is no encoder.
        bfloat16_pixels: Largest change of a decoded pixel in bfloat16; None where there is no decoder.
    """

    family: str
    model: str
    official: str
    tokens: int
    tokens_equal: int
    codes: float
    pixels: float | None
    bfloat16_tokens: float | None
    bfloat16_pixels: float | None


def measure(case: Case) -> Parity:
    """Open a case in float32 and bfloat16 and compare."""
    file = DATA / case.folder / "expected.safetensors"
    expected = load_file(file)
    with safe_open(file, "pt") as opened:
        official = (opened.metadata() or {}).get("official", "")
    whole, half = load_model(case.name()), load_model(case.name(dtype="bfloat16"))
    tokens = tokens_of(whole, expected)
    encodes, decodes = ENCODE in whole.abilities, DECODE in whole.abilities
    equal = whole.encode(expected["pixels"]) == tokens if encodes else torch.zeros(0)
    pixels = expected.get("decoded_pixels") if decodes else None
    return Parity(
        family=case.family,
        model=case.title,
        official=official.split(" (")[0],
        tokens=equal.numel(),
        tokens_equal=int(equal.sum()),
        codes=float((whole.embed(tokens) - codes_of(whole, expected)).abs().max()),
        pixels=None if pixels is None else _apart(whole, tokens, pixels),
        bfloat16_tokens=float((half.encode(expected["pixels"]) == tokens).double().mean()) if encodes else None,
        bfloat16_pixels=None if pixels is None else _apart(half, tokens, pixels),
    )


@torch.no_grad()
def _apart(model: Adapter, tokens: torch.Tensor, pixels: torch.Tensor) -> float:
    return float((model.decode(model.embed(tokens)) - pixels).abs().max())


def tokens_of(model: Adapter, expected: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The expected tokens as this model numbers and lays them out."""
    if "tokens" in expected:
        return expected["tokens"]
    if "tokens_flat" in expected:
        return expected["tokens_flat"][:, None, :]
    parts = [expected["tokens_top"], expected["tokens_bottom"]]
    return join_levels([part + level.codes[0] for part, level in zip(parts, model.levels, strict=True)])


def codes_of(model: Adapter, expected: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The expected codes of those tokens."""
    if "codebook_top" in expected:
        return join_levels([expected["quantized_top"], expected["quantized_bottom"]])
    return expected["codebook"][tokens_of(model, expected)].permute(0, 3, 1, 2)


def table(rows: Sequence[Parity]) -> str:
    """The rows as Markdown."""
    lines = [
        "| family | model | official code | tokens equal | codes | pixels | bfloat16: tokens | pixels |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        cells = [
            f"`{row.family}`",
            row.model,
            row.official,
            f"{row.tokens_equal} of {row.tokens}" if row.tokens else "-",
        ]
        cells += [f"{row.codes:.0e}", _small(row.pixels)]
        cells += ["-" if row.bfloat16_tokens is None else f"{row.bfloat16_tokens:.1%}", _small(row.bfloat16_pixels)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def write(numbers: Path, page: Path) -> None:
    """Measure every case; write the numbers, and the table between the marks of a page."""
    rows = [measure(case) for case in CASES]
    numbers.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    text = between(page.read_text(), START, table(rows))
    page.write_text(between(text, LISTED, family_table()))


def between(text: str, mark: str, new: str) -> str:
    """A page with what stands between a mark and the next end mark replaced."""
    before, _, rest = text.partition(mark)
    return f"{before}{mark}\n{new}\n{END}{rest.partition(END)[2]}"


def family_table() -> str:
    """What every family opens and can do, as Markdown."""
    rows = [f"| `{one.name}` | {one.title} | {one.formats} | {', '.join(one.abilities)} | {one.levels} |"
            for one in families() if one.formats]  # fmt: skip
    return "\n".join(["| family | what | opens | can | grids |", "|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    write(NUMBERS, PAGE)
