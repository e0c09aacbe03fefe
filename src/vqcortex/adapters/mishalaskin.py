"""VQ-VAE in the layout of MishaLaskin/vqvae: strided convolutions, residual stacks, one codebook.

Its files are `{"model": state dict, "results": ..., "hyperparameters": ...}`; sizes are read from the state dict. It is
fully convolutional: any sides that are multiples of four will do. Images are in [-1, 1] inside.

Source:
    github.com/MishaLaskin/vqvae (models/vqvae.py, encoder.py, decoder.py, residual.py, quantizer.py); after van den
    Oord et al. 2017, arXiv:1711.00937, section 4.1. Where its code departs from the paper we follow the code: the
    residual branch begins with a ReLU in place, so the way around it carries relu(x) too, and a stack repeats one
    layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vqcortex.adapters.codes import Choice, TableCodes
from vqcortex.adapters.family import Family, Files, Spec, file_in, table_shape
from vqcortex.adapters.hub import locate
from vqcortex.adapters.network import NetworkAdapter
from vqcortex.adapters.protocol import DECODE, ENCODE, Adapter
from vqcortex.adapters.taming import convolution, numbers_under
from vqcortex.checkpoints import fill, read_checkpoint, state_dict_of

STRIDE = 4
SIZE = (32, 32)  # of CIFAR-10 and of the block images that the project trains on
TABLE = "vector_quantization.embedding.weight"
_IN_STACK = "encoder.conv_stack.5.stack."
_OUT_STACK = "decoder.inverse_conv_stack.1.stack."
_PATTERNS = ("*.pth", "*.pt", "*.safetensors")


class _Residual(nn.Module):
    """relu(x) plus two convolutions of it."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.res_block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, narrow, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(narrow, width, 1, bias=False),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        # The official ReLU works in place: what is added to the branch has gone through it as well.
        x = F.relu(x)
        return x + self.res_block(x)


class _Stack(nn.Module):
    def __init__(self, width: int, narrow: int, layers: int, *, repeats: bool) -> None:
        super().__init__()
        one = _Residual(width, narrow)
        self.stack = nn.ModuleList(one if repeats else _Residual(width, narrow) for _ in range(layers))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        for layer in self.stack:
            x = layer(x)
        return F.relu(x)


class _Encoder(nn.Module):
    def __init__(self, channels: int, half: int, width: int, stack: _Stack) -> None:
        super().__init__()
        self.conv_stack = nn.Sequential(
            nn.Conv2d(channels, half, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            stack,
        )


class _Decoder(nn.Module):
    def __init__(self, d: int, width: int, half: int, channels: int, stack: _Stack) -> None:
        super().__init__()
        self.inverse_conv_stack = nn.Sequential(
            nn.ConvTranspose2d(d, width, 3, padding=1),
            stack,
            nn.ConvTranspose2d(width, half, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(half, channels, 4, stride=2, padding=1),
        )


@final
class MishaLaskinNetwork(nn.Module):
    """The whole VQ-VAE, of the sizes that a state dict has.

    Args:
        tensors: The state dict, as it is on disk.
        path: Where it came from, for messages.
    Raises:
        ModelError: A key is missing, or two of them contradict each other.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        super().__init__()
        half, channels = convolution(tensors, "encoder.conv_stack.0.weight", path)
        width, _ = convolution(tensors, "encoder.conv_stack.4.weight", path)
        d, _ = convolution(tensors, "pre_quantization_conv.weight", path)
        self.encoder = _Encoder(channels, half, width, self._stack(tensors, _IN_STACK, width, path))
        self.pre_quantization_conv = nn.Conv2d(width, d, 1)
        self.codes = TableCodes(*table_shape(tensors, TABLE, path, d=d))
        self.decoder = _Decoder(d, width, half, channels, self._stack(tensors, _OUT_STACK, width, path))

    @staticmethod
    def _stack(tensors: Mapping[str, Tensor], prefix: str, width: int, path: Path) -> _Stack:
        layers = numbers_under(tensors, prefix)
        narrow = convolution(tensors, f"{prefix}0.res_block.1.weight", path)[0]
        # The official stack is one layer in several places; a fork that has several is read as it is.
        first, *others = (
            [tensors.get(f"{prefix}{layer}.res_block.{part}.weight") for part in (1, 3)] for layer in range(layers)
        )
        repeats = all(
            a is not None and b is not None and torch.equal(a, b)
            for other in others
            for a, b in zip(first, other, strict=True)
        )
        return _Stack(width, narrow, layers, repeats=repeats)

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return (pixels - 0.5) / 0.5

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """The latent that codes are compared with."""
        return self.pre_quantization_conv(self.encoder.conv_stack(image))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self.decoder.inverse_conv_stack(embedded)

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return (decoded * 0.5 + 0.5).clamp(0, 1)


def _network(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> MishaLaskinNetwork:
    with torch.device("meta"):
        network = MishaLaskinNetwork(tensors, path)
    named = {"codes.weight" if key == TABLE else key: tensor for key, tensor in tensors.items()}
    fill(network, named, path=path, dtype=dtype)
    return network


def open_mishalaskin(spec: Spec) -> Adapter:
    """Open `mishalaskin:FILE`.

    Raises:
        ModelError: The file is absent, cut short, or of another family.
        ConfigError: An option is unknown, or the size is no multiple of four.
    """
    spec.check()
    path = file_in(locate(spec, *_PATTERNS), *_PATTERNS)
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    return _adapter(spec.text, _network(tensors, path, spec.dtype()), spec.size(SIZE), spec.recognised)


def _adapter(name: str, network: MishaLaskinNetwork, size: tuple[int, int], recognised: str) -> NetworkAdapter:
    return NetworkAdapter(
        name=name, family="mishalaskin", network=network, size=size, stride=STRIDE, recognised=recognised
    )


def recognise(files: Files) -> str | None:
    """Known by the keys of its codebook and of its encoder's first layer."""
    if files.has(TABLE, "encoder.conv_stack.0.weight"):
        return f"a state dict with {TABLE} and encoder.conv_stack: MishaLaskin's VQ-VAE"
    return None


def wrap(model: Any) -> Adapter | None:
    """A live VQVAE of the project: its own tensors, not copied."""
    if type(model).__qualname__ != "VQVAE" or not isinstance(model, nn.Module) or TABLE not in model.state_dict():
        return None
    name = f"live:{type(model).__qualname__}"
    return _adapter(name, _network(model.state_dict(), Path(name), torch.float32), SIZE, "")


FAMILY = Family(
    name="mishalaskin",
    title="VQ-VAE of MishaLaskin/vqvae",
    formats="a .pth file of the project (model, results, hyperparameters), or its state dict",
    abilities=(ENCODE, DECODE),
    open=open_mishalaskin,
    recognise=recognise,
    wrap=wrap,
)
