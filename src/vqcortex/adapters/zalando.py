"""VQ-VAE in the layout of zalandoresearch/pytorch-vq-vae: the notebook that many CIFAR-10 studies began with.

The project defines no file format; a state dict is taken, of the plain or of the EMA quantizer. It is fully
convolutional: any sides that are multiples of four will do. Images are in [-0.5, 0.5] inside.

Source:
    github.com/zalandoresearch/pytorch-vq-vae (vq-vae.ipynb); after van den Oord et al. 2017, arXiv:1711.00937, section
    4.1 and appendix A.1 (codebook by moving averages). Where its code departs from the paper we follow the code: the
    residual branch begins with a ReLU in place, so the way around it carries relu(x) too.
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
from vqcortex.checkpoints import fill, read_checkpoint, state_dict_of, without

STRIDE = 4
SIZE = (32, 32)  # of CIFAR-10, which the notebook trains on
TABLE = "_vq_vae._embedding.weight"
_AVERAGES = ("_vq_vae._ema_w", "_vq_vae._ema_cluster_size")  # training only; the table holds their quotient
_PATTERNS = ("*.pt", "*.pth", "*.safetensors")


class _Residual(nn.Module):
    """relu(x) plus two convolutions of it."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self._block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, narrow, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(narrow, width, 1, bias=False),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        # The official ReLU works in place: what is added to the branch has gone through it as well.
        x = F.relu(x)
        return x + self._block(x)


class _Stack(nn.Module):
    def __init__(self, width: int, narrow: int, layers: int) -> None:
        super().__init__()
        self._layers = nn.ModuleList(_Residual(width, narrow) for _ in range(layers))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        for layer in self._layers:
            x = layer(x)
        return F.relu(x)


class _Encoder(nn.Module):
    def __init__(self, channels: int, half: int, width: int, stack: _Stack) -> None:
        super().__init__()
        self._conv_1 = nn.Conv2d(channels, half, 4, stride=2, padding=1)
        self._conv_2 = nn.Conv2d(half, width, 4, stride=2, padding=1)
        self._conv_3 = nn.Conv2d(width, width, 3, padding=1)
        self._residual_stack = stack

    def forward(self, image: Float[Tensor, "b n H W"]) -> Float[Tensor, "b c h w"]:
        x = F.relu(self._conv_1(image))
        x = F.relu(self._conv_2(x))
        return self._residual_stack(self._conv_3(x))


class _Decoder(nn.Module):
    def __init__(self, d: int, width: int, half: int, channels: int, stack: _Stack) -> None:
        super().__init__()
        self._conv_1 = nn.Conv2d(d, width, 3, padding=1)
        self._residual_stack = stack
        self._conv_trans_1 = nn.ConvTranspose2d(width, half, 4, stride=2, padding=1)
        self._conv_trans_2 = nn.ConvTranspose2d(half, channels, 4, stride=2, padding=1)

    def forward(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n H W"]:
        x = self._residual_stack(self._conv_1(embedded))
        return self._conv_trans_2(F.relu(self._conv_trans_1(x)))


@final
class ZalandoNetwork(nn.Module):
    """The whole VQ-VAE, of the sizes that a state dict has.

    Args:
        tensors: The state dict, as it is on disk.
        path: Where it came from, for messages.
    Raises:
        ModelError: A key is missing, or two of them contradict each other.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        super().__init__()
        half, channels = convolution(tensors, "_encoder._conv_1.weight", path)
        width, _ = convolution(tensors, "_encoder._conv_3.weight", path)
        d, _ = convolution(tensors, "_pre_vq_conv.weight", path)
        self._encoder = _Encoder(channels, half, width, self._stack(tensors, "_encoder", width, path))
        self._pre_vq_conv = nn.Conv2d(width, d, 1)
        self.codes = TableCodes(*table_shape(tensors, TABLE, path, d=d))
        self._decoder = _Decoder(d, width, half, channels, self._stack(tensors, "_decoder", width, path))

    @staticmethod
    def _stack(tensors: Mapping[str, Tensor], half: str, width: int, path: Path) -> _Stack:
        prefix = f"{half}._residual_stack._layers."
        narrow, _ = convolution(tensors, f"{prefix}0._block.1.weight", path)
        return _Stack(width, narrow, numbers_under(tensors, prefix))

    @property
    def abilities(self) -> frozenset[str]:
        return frozenset({ENCODE, DECODE})

    def prepare(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return pixels - 0.5

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """The latent that codes are compared with."""
        return self._pre_vq_conv(self._encoder(image))

    def choose(self, images: Float[Tensor, "b 3 H W"]) -> Choice:
        return self.codes.nearest(self.encode(images))

    def decode(self, embedded: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        return self._decoder(embedded)

    def finish(self, decoded: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        return (decoded + 0.5).clamp(0, 1)


def _network(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> ZalandoNetwork:
    with torch.device("meta"):
        network = ZalandoNetwork(tensors, path)
    kept = without(tensors, *_AVERAGES)
    fill(network, {"codes.weight" if key == TABLE else key: kept[key] for key in kept}, path=path, dtype=dtype)
    return network


def open_zalando(spec: Spec) -> Adapter:
    """Open `zalando:FILE`.

    Raises:
        ModelError: The file is absent, cut short, or of another family.
        ConfigError: An option is unknown, or the size is no multiple of four.
    """
    spec.check()
    path = file_in(locate(spec, *_PATTERNS), *_PATTERNS)
    tensors = state_dict_of(read_checkpoint(path, ignore=spec.ignore), path)
    return _adapter(spec.text, _network(tensors, path, spec.dtype()), spec.size(SIZE), spec.recognised)


def _adapter(name: str, network: ZalandoNetwork, size: tuple[int, int], recognised: str) -> NetworkAdapter:
    return NetworkAdapter(name=name, family="zalando", network=network, size=size, stride=STRIDE, recognised=recognised)


def recognise(files: Files) -> str | None:
    """Known by the keys of its codebook and of its encoder's first layer."""
    if files.has(TABLE, "_encoder._conv_1.weight"):
        return f"a state dict with {TABLE} and _encoder._conv_1: zalando's VQ-VAE"
    return None


def wrap(model: Any) -> Adapter | None:
    """A live Model of the notebook: its own tensors, not copied."""
    if type(model).__qualname__ != "Model" or not isinstance(model, nn.Module) or TABLE not in model.state_dict():
        return None
    name = f"live:{type(model).__qualname__}"
    return _adapter(name, _network(model.state_dict(), Path(name), torch.float32), SIZE, "")


FAMILY = Family(
    name="zalando",
    title="VQ-VAE of zalandoresearch/pytorch-vq-vae",
    formats="a state dict (.pt, .safetensors), plain or EMA quantizer",
    abilities=(ENCODE, DECODE),
    open=open_zalando,
    recognise=recognise,
    wrap=wrap,
)
