"""Where tensors can live on this machine."""

from __future__ import annotations

from vqcortex.errors import ConfigError


def check_device(name: str) -> None:
    """Return quietly if `name` is a device of this machine.

    Raises:
        ConfigError: It is not; the message lists those there are.
    """
    import torch

    known = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    known += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name not in known:
        raise ConfigError(f"device={name!r} is not on this machine; it has: {', '.join(known)}; give one with --device")
