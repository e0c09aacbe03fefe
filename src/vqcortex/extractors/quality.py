"""How good an extractor is on images it has not seen: accuracy, cross entropy, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.calibration import BINS, calibration_gaps
from vqcortex.errors import DataError
from vqcortex.extractors.protocol import look_up
from vqcortex.extractors.still import still

TOPS = (1, 3, 5, 10)
Batch = tuple[Tensor, Tensor]  # token grids (b, h, w) and labels (b,)


def evaluate_extractor(
    module: nn.Module,
    codebook: Float[Tensor, "k d"],
    batches: Iterable[Batch],
    batch: int = 512,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Return held-out figures by name; memory does not grow with the number of images.

    Args:
        module: The extractor.
        codebook: On the extractor's device.
        batches: Pairs of token grids and labels, of any sizes.
        batch: Images per forward pass; changes no figure.
        temperature: Fitted on other images than these.

    Returns:
        images; temperature; top1, top3, top5, top10 (accuracy, 0 to 1; only those up to the number of concepts);
        cross_entropy and cross_entropy_calibrated (nats); ece and ece_calibrated (expected calibration error over 15
        bins, 0 to 1) before and after dividing logits by the temperature.

    Raises:
        DataError: There are no images.
    """
    images, right, entropy, gaps = 0, torch.zeros(max(TOPS)), [0.0, 0.0], torch.zeros(2, BINS, dtype=torch.float64)
    concepts = 0
    for logits, labels in logits_of(module, codebook, batches, batch):
        images, concepts = images + len(labels), logits.shape[1]
        right += hits(logits, labels)
        for i, scaled in enumerate((logits, logits / temperature)):
            entropy[i] += float(F.cross_entropy(scaled, labels, reduction="sum"))
            gaps[i] += calibration_gaps(scaled.softmax(1), labels)
    if not images:
        raise DataError("0 images to evaluate an extractor on; at least 1 is needed; make a larger held-out split")
    accuracy = {f"top{n}": float(right[n - 1]) / images for n in TOPS if n <= concepts}
    error = (gaps.abs().sum(1) / images).tolist()
    return {
        "images": images,
        "temperature": temperature,
        **accuracy,
        "cross_entropy": entropy[0] / images,
        "cross_entropy_calibrated": entropy[1] / images,
        "ece": error[0],
        "ece_calibrated": error[1],
    }


def collected_logits(
    module: nn.Module, codebook: Float[Tensor, "k d"], batches: Iterable[Batch], batch: int = 512
) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
    """Logits and labels of all images, on the CPU: what `fit_temperature` reads.

    Raises:
        DataError: There are no images.
    """
    pairs = list(logits_of(module, codebook, batches, batch))
    if not pairs:
        raise DataError("0 images to take logits of; at least 1 is needed; make a larger validation split")
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def logits_of(
    module: nn.Module, codebook: Float[Tensor, "k d"], batches: Iterable[Batch], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits, float64, and labels on the CPU, at most `batch` images at a time."""
    with still(module), torch.no_grad():
        for tokens, labels in batches:
            for part, truth in zip(tokens.split(batch), labels.split(batch), strict=True):
                yield module(look_up(codebook, part)).cpu().double(), truth.long().cpu()


def hits(logits: Float[Tensor, "b c"], labels: Integer[Tensor, " b"]) -> Float[Tensor, " n"]:
    """How many images have their true concept among the n best, n = 1..10."""
    best = logits.topk(min(max(TOPS), logits.shape[1]), dim=1).indices
    found = (best == labels[:, None]).cumsum(1).sum(0).float()
    return F.pad(found, (0, max(TOPS) - len(found)), value=float(len(labels)))
