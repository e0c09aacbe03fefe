"""Image sources by name, one picture at a time: `idx:`, `imagefolder:`, `parquet:`, `prompts:`, `hf:`,
`torchvision:`.

A source knows its concepts, its length and its image ids before it opens a picture; iterating holds one
picture (or one small block of a file) in memory. An image id says where the picture came from and never changes:
its path inside the source, or the split and the row.
"""

from __future__ import annotations

from collections.abc import Callable

from vqcortex.errors import DataError
from vqcortex.images.idx import read_idx as read_idx
from vqcortex.images.pixels import load_pixels as load_pixels
from vqcortex.images.source import SPELLINGS
from vqcortex.images.source import ImageRecord as ImageRecord
from vqcortex.images.source import ImageSource as ImageSource
from vqcortex.images.source import Picture as Picture
from vqcortex.registry import Registry

SOURCES: Registry[Callable[[str, str], ImageSource]] = Registry("image source")
SOURCES.add("hf", "vqcortex.images.hub:open_hf")
SOURCES.add("idx", "vqcortex.images.idx:IdxSource")
SOURCES.add("imagefolder", "vqcortex.images.folder:FolderSource")
SOURCES.add("parquet", "vqcortex.images.parquet:ParquetSource")
SOURCES.add("prompts", "vqcortex.images.prompts:PromptSource")
SOURCES.add("torchvision", "vqcortex.images.hub:open_torchvision")


def open_images(source: str, split: str = "train") -> ImageSource:
    """Open a source by name.

    Args:
        source: "idx:FOLDER", "imagefolder:FOLDER", "parquet:FILE or FOLDER", "prompts:TABLE or FOLDER", "hf:NAME",
            "torchvision:NAME".
        split: "train", "validation" or "test". A path to one Parquet file is that file, whatever the split.

    Raises:
        UnknownName: No such kind of source.
        DataError: It does not exist, has no such split, or is not laid out as its kind is.
        MissingExtra: A package is needed; the message has the command that installs it.
    """
    kind, mark, place = source.partition(":")
    if not mark or not place:
        known = ", ".join(f"{name}:..." for name in SOURCES)
        raise DataError(f"image source {source!r} has no kind; write {known}, as in 'imagefolder:photos'")
    if split not in SPELLINGS:
        raise DataError(f"split {split!r} is unknown to image sources; write one of: {', '.join(SPELLINGS)}")
    return SOURCES[kind](place, split)
