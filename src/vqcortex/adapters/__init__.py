"""Model families. A new one is a file here that makes a `family.Family`, and one line below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from vqcortex.adapters.family import Family, Files, Spec, expanded
from vqcortex.adapters.protocol import GENERATE, Adapter, Generator
from vqcortex.devices import check_device
from vqcortex.errors import ConfigError, ModelError, UnknownName
from vqcortex.registry import Registry

FAMILIES: Registry[Family] = Registry("model family")
FAMILIES.add("diffusers", "vqcortex.adapters.diffusers:FAMILY")
FAMILIES.add("llamagen", "vqcortex.adapters.llamagen:FAMILY")
FAMILIES.add("maskgit", "vqcortex.adapters.maskgit:FAMILY")
FAMILIES.add("min-dalle", "vqcortex.adapters.min_dalle:FAMILY")
FAMILIES.add("mishalaskin", "vqcortex.adapters.mishalaskin:FAMILY")
FAMILIES.add("net2net", "vqcortex.adapters.net2net:FAMILY")
FAMILIES.add("open-magvit2", "vqcortex.adapters.open_magvit2:FAMILY")
FAMILIES.add("openai-dvae", "vqcortex.adapters.openai_dvae:FAMILY")
FAMILIES.add("rosinality", "vqcortex.adapters.rosinality:FAMILY")
FAMILIES.add("taming", "vqcortex.adapters.taming:FAMILY")
FAMILIES.add("toy", "vqcortex.adapters.toy:FAMILY")
FAMILIES.add("transformers", "vqcortex.adapters.hf:FAMILY")
FAMILIES.add("var", "vqcortex.adapters.var:FAMILY")
FAMILIES.add("vqgan-jax", "vqcortex.adapters.vqgan_jax:FAMILY")
FAMILIES.add("zalando", "vqcortex.adapters.zalando:FAMILY")
FAMILIES.add("zoo", "vqcortex.adapters.zoo:FAMILY")

# Packages that bring families of their own name them in this entry-point group: NAME = "module:FAMILY".
GROUP = "vqcortex.adapters"


def families() -> Iterator[Family]:
    """Every family there is, ours and those of installed packages, by name."""
    foreign = _foreign()
    for name in sorted({*FAMILIES, *foreign}):
        yield family_of(name)


def family_of(name: str) -> Family:
    """A family by its name.

    Raises:
        UnknownName: There is none of that name.
        ModelError: An installed package promises one and does not deliver.
    """
    if name in FAMILIES or name not in (foreign := _foreign()):
        return FAMILIES[name]
    try:
        found = foreign[name].load()
    except Exception as error:
        raise ModelError(
            f"model family {name!r} of entry point {foreign[name].value!r} cannot be loaded ({error}); "
            "mend or remove the package that brings it"
        ) from error
    if not isinstance(found, Family):
        raise ModelError(
            f"entry point {foreign[name].value!r} is {type(found).__name__}, not a vqcortex.adapters.family.Family; "
            "mend or remove the package that brings it"
        )
    if found.name != name:
        raise ModelError(
            f"entry point {name!r} = {foreign[name].value!r} brings a family named {found.name!r}; "
            "the two must be equal: mend the package that brings it"
        )
    return found


def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def load_model(name: str | Path | Any, device: str = "cpu") -> Adapter:
    """Open a model.

    Args:
        name: "FAMILY:WHICH" as `vqcortex models` lists them ("zoo:fashion", "taming:DIR", "diffusers:ID#vqvae"), with
            options after a question mark ("?size=256&dtype=bfloat16"); or the path of a checkpoint file or folder,
            whose family is recognised; or a live module of a known library, which is used as it is and held still.
        device: Where its tensors live: "cpu", "cuda", "cuda:1".
    Returns:
        An adapter; also a `Generator` if the family can draw images of a concept.
    Raises:
        UnknownName: No such family or model; the message lists the known ones.
        ModelError: Its files are absent, altered, not finite, or of no known family.
        ConfigError: No such device, or an option that the family does not know.
    Example:
        >>> load_model("toy").grid
        (4, 4)
    """
    check_device(device)
    if not isinstance(name, (str, Path)):
        return _wrapped(name).to(device)
    text = str(name)
    settled = _settled(text)
    if settled.options.get("dtype") == "float16" and device == "cpu":
        raise ConfigError(
            f"dtype=float16 of model {text!r} has no convolutions on the CPU; use ?dtype=bfloat16, or --device cuda"
        )
    return family_of(settled.family).open(settled).to(device)


def _settled(text: str) -> Spec:
    """A model's name with its family, however it was written."""
    family = text.partition(":")[0].partition("?")[0]
    if family in FAMILIES and not family_of(family).formats:
        # Embedded models: a folder that happens to be called "toy" or "fashion" does not stand for them.
        spec = Spec.read(text)
        return spec if spec.family else replace(spec, family=family, place="")
    # A path may hold anything: a colon, a question mark.
    spec = Spec(text=text, family="", place=text) if Path(text).exists() else Spec.read(text)
    if spec.family and (spec.family in FAMILIES or spec.family in _foreign()):
        return spec.settled(spec.family)
    if not spec.family and spec.place and expanded(spec.place).exists():
        return _recognised(spec)
    raise UnknownName(_no_model(text))


def _recognised(spec: Spec) -> Spec:
    """The name with the family that knows the files at its path, and by what."""
    files = Files(expanded(spec.place) / spec.subfolder, spec.ignore)
    found = [(family.name, why) for family in families() if (why := family.recognise(files))]
    if len(found) == 1:
        return spec.settled(*found[0])
    if not found and (only := files.only_checkpoint()) is not None:
        return _recognised(replace(spec, place=str(only), subfolder=""))
    if not found:
        known = ", ".join(family.name for family in families() if family.name not in ("toy", "zoo"))
        raise ModelError(f"{spec.place!r} is of no family that is known ({known}): {_seen(files)}; write FAMILY:PATH")
    names = " or ".join(f"{name}:{spec.place}" for name, _ in found)
    raise ModelError(f"{spec.place!r} could be of {len(found)} families; write {names}")


def _seen(files: Files) -> str:
    if files.path.is_dir():
        inside = sorted(one.name for one in files.path.iterdir())
        return f"the folder holds {', '.join(inside[:5]) or 'nothing'}"
    keys = sorted(files.tensors)
    return f"the file's state dict begins with {', '.join(keys[:3])}" if keys else "the file holds no state dict"


def _wrapped(model: Any) -> Adapter:
    if isinstance(model, Adapter):
        return model
    for family in families():
        found = family.wrap(model)
        if found is not None:
            return found
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise ModelError(
        f"no family knows live objects of {kind}; implement vqcortex.adapters.protocol.Adapter, "
        "or wrap its parts with vqcortex.adapters.wrap.wrap_model(encoder, quantizer, decoder)"
    )


def _no_model(name: str) -> str:
    from vqcortex.adapters.zoo import zoo_names

    known = [*(f"zoo:{one}" for one in zoo_names()), "toy", *(f"{one.name}:PATH" for one in families() if one.formats)]
    near = get_close_matches(name, known, n=1, cutoff=0.4) or [one for one in known if one.endswith(f":{name}")]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no model named {name!r}; known: {', '.join(known)}, or the path of a checkpoint.{hint}"


def generator_of(model: Adapter) -> Generator:
    """Return `model` as a generator, or say that it is none."""
    if GENERATE not in model.abilities or not isinstance(model, Generator):
        raise ConfigError(
            f"model {model.name!r} cannot generate images; encode real ones instead: --images imagefolder:DIR"
        )
    return model
