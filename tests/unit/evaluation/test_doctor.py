"""The doctor tells a whole model from a broken one, and says what is broken."""

import itertools

import pytest
import torch

from vqcortex.adapters import load_model
from vqcortex.evaluation.doctor import CHECKS, Finding, examine, psnr, random_grids, take_sample, verdict_of


class Broken:
    """A model with some members replaced by worse ones."""

    def __init__(self, model, **worse):
        self._model, self._worse = model, worse

    def __getattr__(self, name):
        return self._worse[name] if name in self._worse else getattr(self._model, name)


@pytest.fixture(scope="module")
def fashion():
    return load_model("zoo:fashion")


def found(model, pixels=None) -> dict[str, Finding]:
    return {one.check: one for one in examine(model, take_sample(model, pixels, 4, 0), batch=2)}


def test_a_whole_model_passes_every_check(fashion):
    findings = found(fashion, fashion.decode(fashion.embed(random_grids(fashion, 4, 1))))
    assert list(findings) == list(CHECKS)
    assert {one.verdict for one in findings.values()} == {"pass"}
    assert not any(one.reason for one in findings.values())


def twice_different():
    rng = torch.Generator().manual_seed(0)
    return lambda fashion: lambda pixels: torch.randint(0, 256, (len(pixels), 7, 7), generator=rng)


def by_company(fashion):
    return lambda pixels: (fashion.encode(pixels) + len(pixels)) % 256


BROKEN = [
    ("codes are finite", "NaN or infinity", "embed", lambda m: lambda tokens: m.embed(tokens) * torch.nan),
    ("codes are finite", "all codes are alike", "embed", lambda m: lambda tokens: torch.zeros_like(m.embed(tokens))),
    ("shapes", "embed must return", "embed", lambda m: lambda tokens: m.embed(tokens).flatten(2)),
    ("shapes", "a level claims codes up to", "k", lambda m: 200),
    ("ids → embed → nearest", "different tables", "nearest", lambda m: lambda e: (m.nearest(e) + 1) % 256),
    ("pixel range", r"must lie in \[0, 1\]", "decode", lambda m: lambda e: m.decode(e) * 2 - 1),
    ("pixel range", "hold NaN", "decode", lambda m: lambda e: m.decode(e) / 0 * 0),
    ("pixel range", "flat", "decode", lambda m: lambda e: torch.full_like(m.decode(e), 0.5)),
    ("gradient to the codes", "no gradient reaches", "decode", lambda m: lambda e: m.decode(e.detach()) + 0 * e.sum()),
    ("gradient to the codes", "it raised RuntimeError", "decode", lambda m: lambda e: m.decode(e.detach())),
    ("same twice", "noise or dropout", "encode", twice_different()),
    ("same twice", "noise or dropout", "decode", lambda m: lambda e: (m.decode(e) + torch.rand(1)) / 2),
    ("alone as in company", "other images of the batch", "encode", by_company),
    ("alone as in company", "pictures depend", "decode", lambda m: lambda e: m.decode(e) / len(e)),
    ("live codes", "one code", "encode", lambda m: lambda pixels: torch.zeros_like(m.encode(pixels))),
]


@pytest.mark.parametrize(
    ("check", "reason", "member", "worse"), BROKEN, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)]
)
def test_a_broken_model_fails_the_check_that_is_about_it(fashion, check, reason, member, worse):
    finding = found(Broken(fashion, **{member: worse(fashion)}))[check]
    assert finding.verdict == "fail"
    import re

    assert re.search(reason, finding.reason)


def test_an_encoder_that_reads_another_range_is_caught_on_pictures(fashion):
    pixels = fashion.decode(fashion.embed(random_grids(fashion, 4, 1)))
    wrong = Broken(fashion, encode=lambda shown: fashion.encode(1 - shown))
    assert found(wrong, pixels)["reconstruction"].verdict == "fail"
    assert found(wrong, pixels)["encode → decode → encode"].verdict == "warn"


def test_a_model_without_a_decoder_is_not_asked_for_pictures(fashion):
    findings = found(Broken(fashion, abilities=frozenset({"encode"})))
    skipped = [name for name, one in findings.items() if one.verdict == "skip"]
    assert skipped == ["pixel range", "encode → decode → encode", "gradient to the codes", "reconstruction"]
    assert findings["pixel range"].reason == "the model cannot decode"


def test_twins_in_the_codebook_are_a_warning(fashion):
    table = fashion.codebook.clone()
    table[1] = table[0]
    tokens = torch.zeros(1, 7, 7, dtype=torch.long)
    twin = Broken(fashion, codebook=table, nearest=lambda embedded: tokens.expand(len(embedded), 7, 7))
    sample = take_sample(twin, None, 2, 0)
    sample = type(sample)(sample.pixels, tokens + 1, False)
    finding = next(one for one in examine(twin, sample) if one.check == "ids → embed → nearest")
    assert (finding.verdict, finding.value) == ("warn", "0.00% of tokens")
    assert "2 codes have an identical twin" in finding.reason


@pytest.mark.parametrize("verdicts", list(itertools.product(("pass", "warn", "fail", "skip"), repeat=2)))
def test_the_verdict_is_the_worst_finding(verdicts):
    findings = [Finding(check="x", verdict=one, value="") for one in verdicts]
    worst = next((one for one in ("fail", "warn") if one in verdicts), "pass")
    assert verdict_of(findings) == worst


def test_psnr_is_its_formula():
    one, other = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)
    assert psnr(one, other).item() == pytest.approx(20, abs=1e-4)
    assert psnr(one, one).item() == torch.inf
