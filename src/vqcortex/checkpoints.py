"""Foreign checkpoints, read without running anything that is in them.

A file is recognised by its first bytes, not by its name:

safetensors     a table of tensors; cannot hold code
torch           a zip archive, or the older stream: a pickle beside raw numbers; torch's safe reader builds it
                (`weights_only=True`), bystanders of training become inert records, every other name is refused
Flax            msgpack, a tree of arrays; cannot hold code; it bears no mark, so its name must end in .msgpack

Tensors of safetensors and of torch's archives stay on disk until they are touched: the file must not change meanwhile.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vqcortex.errors import MissingExtra, ModelError
from vqcortex.pickles import Record, StandIn, Stream, outline_of, some, stand_ins, without_notes

BYSTANDERS = (
    "argparse",
    "collections",
    "copyreg",
    "lightning",
    "lightning_fabric",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "typing",
    "builtins.bool",
    "builtins.bytes",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
)
"""What training leaves beside the tensors, by package or by full name: read as inert records, never imported."""

MODULE_PARTS = ("torch.nn", "dall_e")
"""What a module saved whole consists of: read as inert records too, where a module is asked for."""

STATE_KEYS = ("state_dict", "model", "ema")
"""Where trainers keep the state dict, in the order in which they are tried."""

ARCHIVE = b"PK\x03\x04"
PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
TORCH_STREAM = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's older format: behind the protocol, this number alone
STREAM_PICKLES = 5  # of the older format: the number, a version, the machine, the object, the storages' names
OBJECT = 3  # which of them may hold modules
LONGEST_HEADER = 100_000_000  # bytes, of safetensors
DEEPEST = 100  # modules inside modules
CHUNKED = "__msgpack_chunked_array__"


def read_checkpoint(path: Path, *, ignore: Sequence[str] = ()) -> Any:
    """Whatever a checkpoint holds: dicts and lists of tensors, plain values and inert records, on the CPU.

    Args:
        path: A file of safetensors, of torch, or of Flax.
        ignore: Further names that may stand in a pickle, by package ("wandb") or in full ("wandb.config.Config"), on
            top of `BYSTANDERS`; like those they become inert records and are never imported.
    Raises:
        ModelError: The file is absent, cut short, none of these formats, or names something that could run code.
        MissingExtra: A Flax checkpoint, and msgpack is not installed.
    """
    head = _head(path)
    try:
        if head.startswith(ARCHIVE):
            return _read_archive(path, ignore)
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
            return load_file(path)
        if head.startswith(PICKLES):
            return _read_stream(path, ignore)
        if path.suffix == ".msgpack":
            return _read_flax(path)
    except (ModelError, MissingExtra):
        raise
    except Exception as error:  # broken bytes make readers fail in every way there is; to the caller they are one
        raise ModelError(
            f"checkpoint {str(path)!r} cannot be read ({_line(error)}); it is cut short, altered or of an unusual "
            "kind: download it again, or convert it to safetensors where it is trusted"
        ) from error
    raise ModelError(f"checkpoint {str(path)!r} {_what_it_is(head)}")


def read_pickled_module(path: Path, *, ignore: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict of a module saved whole, as OpenAI's dVAE is, without the code it was made with.

    Args:
        path: A file of torch.
        ignore: As in `read_checkpoint`, on top of `MODULE_PARTS`.
    Raises:
        ModelError: As `read_checkpoint` and `state_dict_of`.
    """
    return state_dict_of(read_checkpoint(path, ignore=(*MODULE_PARTS, *ignore)), path)


def state_dict_of(value: Any, path: Path, *, keys: Sequence[str] = STATE_KEYS) -> dict[str, Tensor]:
    """The tensors by name in what `read_checkpoint` gave, without the "module." of distributed training.

    Args:
        value: A dict that holds a state dict under one of `keys`, or is one; or the record of a module saved whole.
        path: Of the file, for messages.
        keys: Where to look, best first.
    Raises:
        ModelError: There are no tensors in any of these places.
    """
    inner = (value.get(key) for key in keys) if isinstance(value, Mapping) else ()
    found = next(filter(None, map(_tensors_in, (*inner, value))), None)
    if found is None:
        what = f"the keys {some([str(key) for key in value])}" if isinstance(value, Mapping) else type(value).__name__
        raise ModelError(
            f"checkpoint {str(path)!r} holds no tensors by name, neither at its top nor under "
            f"{', '.join(map(repr, keys))}, but {what}; save the model's state_dict()"
        )
    return under(found, "module.") if all(name.startswith("module.") for name in found) else found


def without(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """All but the tensors whose names begin with one of `prefixes`."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Only the tensors whose names begin with `prefix`, which is taken off."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def shape_of(tensors: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, ...]:
    """The shape of one tensor.

    Raises:
        ModelError: There is no such tensor.
    """
    if key not in tensors:
        raise ModelError(
            f"checkpoint {str(path)!r} has no key {key!r} among its {len(tensors)}: {some(list(tensors))}; "
            "it is of another family, or a part was cut out"
        )
    return tuple(tensors[key].shape)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Give a module its weights: all of them, none left over, all finite; then it stands still (eval, no gradients).

    Tensors that have the right dtype are taken as they are, so that a mapped file is not copied, and a module built
    under `torch.device("meta")` costs nothing before. What is one tensor under two names stays one. A module that was
    refused is as it was before.

    Args:
        module: Of any kind; what it computes for itself and does not save must not be on the meta device.
        tensors: By the names of `module.state_dict()`; of two names of one tensor, one is enough.
        path: Of the file, for messages.
        dtype: Of all floating-point tensors afterwards.
    Raises:
        ModelError: A tensor is missing, left over, of another shape or kind, or not finite.
    """
    places: dict[str, Tensor] = module.state_dict(keep_vars=True)
    given = {**_twins(places, tensors), **tensors}
    _check_names(places, given, path)
    _check_shapes(places, given, path)
    _check_twins(places, given, path)
    _check_unsaved(module, places)
    fitted: dict[int, Tensor] = {}
    for name, place in places.items():
        if id(place) not in fitted:
            fitted[id(place)] = _fitted(name, place, given[name], path, dtype)
    module.load_state_dict({name: fitted[id(place)] for name, place in places.items()}, strict=True, assign=True)
    module.eval().requires_grad_(False)


def _twins(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For every name of a tensor that has several, what is given under one of them."""
    known = {id(place): tensors[name] for name, place in reversed(list(places.items())) if name in tensors}
    return {name: known[id(place)] for name, place in places.items() if id(place) in known}


def _check_names(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in places if name not in tensors]
    extra = [name for name in tensors if name not in places]
    faults = (
        f"lacks {len(missing)} of the model's {len(places)} tensors ({some(missing)})" if missing else "",
        f"holds {len(extra)} that the model has no place for ({some(extra)})" if extra else "",
    )
    if any(faults):
        raise ModelError(
            f"checkpoint {str(path)!r} {' and '.join(filter(None, faults))}; it is of another family, or the config "
            "beside it is another model's"
        )


def _check_shapes(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    wrong = [name for name, place in places.items() if tensors[name].shape != place.shape]
    if wrong:
        found, expected = (tuple(side[wrong[0]].shape) for side in (tensors, places))
        raise ModelError(
            f"checkpoint {str(path)!r}: {wrong[0]!r} has shape {found} where the model expects {expected} "
            f"({len(wrong)} of {len(places)} tensors differ); it is of another family, or the config beside it is "
            "another model's"
        )


def _check_twins(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Two names of one tensor must not bring different numbers: one of them would be lost without a word."""
    first: dict[int, str] = {}
    for name, place in places.items():
        twin = first.setdefault(id(place), name)
        if tensors[name] is not tensors[twin] and not torch.equal(tensors[name], tensors[twin]):
            raise ModelError(
                f"checkpoint {str(path)!r}: {twin!r} and {name!r} are one tensor in this model but differ in the file; "
                "it is of another family"
            )


def _check_unsaved(module: nn.Module, places: Mapping[str, Tensor]) -> None:
    """A tensor that is no part of the state dict cannot come from the file: it has to be there already."""
    for prefix, part in module.named_modules():
        for name, value in (*vars(part).items(), *part.named_buffers(recurse=False)):
            whole = f"{prefix}.{name}" if prefix else name
            if isinstance(value, Tensor) and value.is_meta and whole not in places:
                raise ModelError(
                    f"{type(module).__name__} computes {whole!r} for itself and does not save it, so it has no numbers "
                    "when built on the meta device; build it on the CPU"
                )


def _fitted(name: str, place: Tensor, tensor: Tensor, path: Path, dtype: torch.dtype) -> Tensor:
    """One tensor, as what stands at `place` shall be."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
        kind = "an empty" if tensor.is_meta else "a quantised" if tensor.is_quantized else "a sparse"
        raise ModelError(f"checkpoint {str(path)!r}: {name!r} is {kind} tensor; save it as plain dense numbers")
    if tensor.is_floating_point() and not place.is_floating_point():
        raise ModelError(
            f"checkpoint {str(path)!r}: {name!r} has numbers of {_kind(tensor.dtype)} where the model expects "
            f"{_kind(place.dtype)}; it is of another family"
        )
    fitted = tensor.detach().to(dtype if place.is_floating_point() else place.dtype).contiguous()
    if fitted.data_ptr() % fitted.element_size():
        fitted = fitted.clone()  # an archive may lay its numbers where processors do not like them
    _check_finite(name, fitted, path)
    return nn.Parameter(fitted, requires_grad=False) if isinstance(place, nn.Parameter) else fitted


def _check_finite(name: str, tensor: Tensor, path: Path) -> None:
    """Least and most tell it without a copy, which counts where a file is as large as the memory."""
    if not tensor.is_floating_point() or not tensor.numel() or torch.stack(tensor.aminmax()).isfinite().all():
        return
    broken = int((~tensor.isfinite()).sum())
    raise ModelError(
        f"checkpoint {str(path)!r}: {broken} of {tensor.numel()} numbers of {name!r} are NaN or infinite as "
        f"{_kind(tensor.dtype)}; every weight must be finite: download the file again, or ask its maker"
    )


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensors_in(value: Any) -> dict[str, Tensor]:
    """The tensors by name of a dict or of the record of a module; nothing else has any."""
    if isinstance(value, Record):
        return dict(_tensors_of(value, ()))
    return {name: one for name, one in _items(value) if isinstance(one, Tensor)}


def _tensors_of(module: Record, above: tuple[Record, ...]) -> Iterator[tuple[str, Tensor]]:
    """What `state_dict` of the module would give, from the tables that every torch module keeps."""
    state = dict(_items(module.state))
    unsaved = state.get("_non_persistent_buffers_set")
    for name, tensor in (*_items(state.get("_parameters")), *_items(state.get("_buffers"))):
        if isinstance(tensor, Tensor) and not (isinstance(unsaved, set) and name in unsaved):
            yield name, tensor
    for name, child in _items(state.get("_modules")):
        if isinstance(child, Record) and len(above) < DEEPEST:  # a forged module might hold itself
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors_of(child, (*above, module)))


def _items(value: Any) -> list[tuple[str, Any]]:
    """What a dict holds under names; a file may have anything in its place."""
    return [(name, one) for name, one in value.items() if isinstance(name, str)] if isinstance(value, Mapping) else []


def _head(path: Path) -> bytes:
    """The first bytes of a file, which tell what it is."""
    if path.is_dir():
        raise ModelError(f"checkpoint {str(path)!r} is a folder; name the file in it that holds the weights")
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise ModelError(f"checkpoint {str(path)!r} cannot be opened: {error.strerror}; check the path") from error


def _read_archive(path: Path, ignore: Sequence[str]) -> Any:
    """torch's format since 1.6."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        root = entries[0].filename.split("/")[0] if entries else ""
        names = {entry.filename for entry in entries}
        if f"{root}/data.pkl" not in names:
            raise ModelError(
                f"checkpoint {str(path)!r} is a zip archive without torch's {root}/data.pkl; "
                "unpack it and name the file that holds the weights"
            )
        if f"{root}/constants.pkl" in names:
            raise ModelError(f"checkpoint {str(path)!r} is TorchScript, which is code; save the model's state_dict()")
        outline = outline_of(io.BytesIO(archive.read(f"{root}/data.pkl")))
    inert = stand_ins(outline.names, inert=(*BYSTANDERS, *ignore), path=path)
    if all(entry.compress_type == zipfile.ZIP_STORED for entry in entries) and path.suffix != ".safetensors":
        return _load(str(path), inert, is_mapped=True)
    with path.open("rb") as file:  # packed numbers cannot be mapped; and a path of that ending torch takes at its word
        return _load(file, inert)


def _read_stream(path: Path, ignore: Sequence[str]) -> Any:
    """torch's format before 1.6, and pickles that are none of torch's."""
    with path.open("rb") as file:
        is_torch = file.read(2 + len(TORCH_STREAM))[2:] == TORCH_STREAM
        file.seek(0)
        outlines = [outline_of(file) for _ in range(STREAM_PICKLES if is_torch else 1)]
        names = {name: use for outline in outlines for name, use in outline.names.items()}
        inert = stand_ins(names, inert=(*BYSTANDERS, *ignore), path=path)
        if not is_torch:
            raise ModelError(f"checkpoint {str(path)!r} is a Python pickle but none of torch's; save it as safetensors")
        file.seek(0)
        notes = outlines[OBJECT].notes
        return _load(io.BytesIO(without_notes(file.read(), notes)) if notes else file, inert)


def _load(file: Stream | str, inert: list[StandIn], *, is_mapped: bool = False) -> Any:
    """Let torch's safe reader build it; what is let in here is out again afterwards."""
    with torch.serialization.safe_globals(inert), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped)


def _read_flax(path: Path) -> dict[Any, Any]:
    """A tree as flax.serialization writes it.

    Source:
        flax/serialization.py of github.com/google/flax: extension 1 is an array as (shape, name of the dtype, bytes), 2
        a complex number as (real, imaginary), 3 a scalar as an array without axes; an array above 1 GB is a dict of
        flat chunks.
    """
    try:
        import msgpack
    except ImportError as error:
        raise MissingExtra("Flax checkpoints need msgpack; install it with: pip install 'vqcortex[flax]'") from error

    def extension(code: int, content: bytes) -> Any:
        if code == 2:
            return complex(*msgpack.unpackb(content))
        if code not in (1, 3):
            raise ValueError(f"extension {code} is none of Flax's")
        array = _array(*msgpack.unpackb(content, raw=True))
        return array.item() if code == 3 else array

    size = os.path.getsize(path)
    with path.open("rb") as file:
        reader = msgpack.Unpacker(
            file,
            ext_hook=extension,
            object_hook=_joined,
            strict_map_key=False,
            max_buffer_size=2**32 - 1,  # longer than any chunk
            max_array_len=size,  # room is made before the content is seen
            max_map_len=size,
        )
        tree = reader.unpack()
        if not isinstance(tree, dict) or reader.tell() != size:
            raise ModelError(f"checkpoint {str(path)!r} is no tree of msgpack, as Flax writes it; check what it is")
    return tree


def _array(shape: list[int], dtype: bytes, content: bytes) -> Tensor:
    """An array of Flax; `dtype` is the name that numpy or JAX gives it."""
    found = getattr(torch, dtype.decode(), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"an array of {dtype.decode()!r}")
    flat = torch.frombuffer(bytearray(content), dtype=found) if content else torch.empty(0, dtype=found)
    return flat.reshape(shape)


def _joined(tree: dict[Any, Any]) -> Any:
    """A dict as it is, or the array that its chunks make."""
    if CHUNKED not in tree:
        return tree
    shape, chunks = ([tree[key][str(i)] for i in range(len(tree[key]))] for key in ("shape", "chunks"))
    return torch.cat(chunks).reshape(shape)


def _what_it_is(head: bytes) -> str:
    """What a file that is no checkpoint seems to be, and what to do."""
    if not head:
        return "is empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the file itself; run 'git lfs pull' in its repository"
    if head.lstrip().startswith(b"<"):
        return "is a web page and not the file itself; download it again"
    return (
        f"begins with {head[:8]!r} and is neither safetensors nor a checkpoint of torch, nor does its name end in "
        ".msgpack as Flax's do; name the file that holds the weights"
    )


def _line(error: Exception) -> str:
    """What another library says, in one line short enough to stand inside a sentence.

    torch puts advice in front, to switch its safety off, that nobody should get from us.
    """
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160].rstrip('. ')}" if lines else type(error).__name__
