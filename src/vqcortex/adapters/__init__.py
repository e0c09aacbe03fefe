"""Model families. A new one is a file here that follows `protocol.Adapter`, and one line below."""

from __future__ import annotations

from collections.abc import Callable

from vqcortex.adapters.protocol import Adapter, Generator
from vqcortex.devices import check_device
from vqcortex.errors import ConfigError, UnknownName
from vqcortex.registry import Registry

# From what stands before the colon to a function of what stands after it.
FAMILIES: Registry[Callable[[str], Adapter]] = Registry("model family")
FAMILIES.add("toy", "vqcortex.adapters.toy:load_toy")
FAMILIES.add("zoo", "vqcortex.adapters.zoo:load_zoo")


def load_model(name: str, device: str = "cpu") -> Adapter:
    """Open a model by name.

    Args:
        name: "FAMILY:WHICH", as `vqcortex models` lists them: "zoo:fashion", "toy".
        device: Where its tensors live: "cpu", "cuda", "cuda:1".
    Returns:
        An adapter; also a `Generator` if the family can draw images of a concept.
    Raises:
        UnknownName: No such family or model; the message lists the known ones.
        ModelError: Its files are absent, altered, or not finite.
        ConfigError: No such device.
    Example:
        >>> load_model("toy").grid
        (4, 4)
    """
    family, _, which = name.partition(":")
    if family not in FAMILIES:
        from vqcortex.adapters.zoo import zoo_names

        known = [*(f"zoo:{one}" for one in zoo_names()), "toy"]
        raise UnknownName(_no_model(name, known))
    check_device(device)
    return FAMILIES[family](which).to(device)


def _no_model(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.4) or [one for one in known if one.endswith(f":{name}")]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no model named {name!r}; known: {', '.join(known)}.{hint}"


def generator_of(model: Adapter) -> Generator:
    """Return `model` as a generator, or say that it is none."""
    if not isinstance(model, Generator):
        raise ConfigError(
            f"model {model.name!r} cannot generate images; encode real ones instead: --images imagefolder:DIR"
        )
    return model
