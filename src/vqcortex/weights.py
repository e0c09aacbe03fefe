"""Weights on disk: safetensors only, checked before use."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vqcortex.errors import ModelError
from vqcortex.files import hash_of_bytes, hash_of_file, write_bytes


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for shipping, on the CPU: matrices in half precision, vectors (norms, running statistics) as they are."""
    return {
        name: (tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor).cpu()
        for name, tensor in tensors.items()
    }


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors as they are and return the file's SHA-256."""
    content = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    write_bytes(path, content)
    return hash_of_bytes(content)


def save_training_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a training state for `torch.load(path, weights_only=True)`.

    It is packed in memory first: torch's own writer turns a full disk into an assertion about file positions.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())


def load_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read tensors, half precision widened to float32.

    Args:
        path: A .safetensors file.
        sha256: What its hash must be; None skips the check.
    Raises:
        ModelError: The file is absent, altered, cut short, or holds NaN or infinity.
    """
    if not path.is_file():
        raise ModelError(f"weights {str(path)!r} do not exist; reinstall vqcortex or name a folder that holds them")
    if sha256 is not None and (found := hash_of_file(path)) != sha256:
        raise ModelError(
            f"weights {str(path)!r} have SHA-256 {found[:12]}… where {sha256[:12]}… was recorded; "
            "the file was altered or cut short: restore it, or make the model again"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"weights {str(path)!r} are not a whole safetensors file ({error}); restore it") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            broken = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"weights {str(path)!r}: {broken} of {tensor.numel()} numbers of {name!r} are NaN or infinite; "
                "every weight must be finite: restore the file, or train again with a lower learning rate"
            )
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
