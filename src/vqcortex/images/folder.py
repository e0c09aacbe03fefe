"""`imagefolder:FOLDER`, one folder per concept, as torchvision's ImageFolder reads it, or one flat folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import final

from vqcortex.errors import DataError
from vqcortex.images.source import SPELLINGS, ImageRecord, Picture, existing, records

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@final
class FolderSource:
    """Pictures anywhere below CONCEPT/; or below train/CONCEPT/, val/CONCEPT/, test/CONCEPT/.

    Pictures beside each other, with no folder among them, are of one concept called as their folder: a group of
    an audit, say.
    """

    def __init__(self, place: str, split: str) -> None:
        root = existing(place)
        splits = _splits(root)
        chosen = _chosen(root, splits, split)
        flat = [] if splits or _folders(chosen) else _pictures(chosen)
        self.is_flat = bool(flat)
        """Whether there are no class folders, so that a picture's concept says no more than where it comes from."""
        self.concepts = (_as_id(Path(chosen.absolute().name)),) if flat else _concepts(chosen, splits)
        self._files = [(file, 0) for file in flat] or [
            (file, n) for n, name in enumerate(self.concepts) for file in _pictures(chosen / name)
        ]
        if not self._files:
            raise DataError(f"the folders in {str(chosen)!r} hold no pictures; wanted: {', '.join(SUFFIXES)}")
        self.image_ids: Sequence[str] = [_as_id(file.relative_to(root)) for file, _ in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[ImageRecord]:
        return records(self)

    def labels(self) -> Iterator[int]:
        return (concept for _, concept in self._files)

    def pictures(self, rows: Iterable[int]) -> Iterator[Picture]:
        files = (self._files[row][0] for row in rows)
        return (Picture(str(file), file.absolute()) for file in files)  # wherever it is opened


def _splits(root: Path) -> dict[str, Path]:
    """Folders called train, val, test, ... that hold folders; empty: the source has no splits."""
    found = {
        split: root / spelling
        for split, spellings in SPELLINGS.items()
        for spelling in reversed(spellings)
        if _folders(root / spelling)
    }
    return found if "train" in found else {}


def _chosen(root: Path, splits: dict[str, Path], split: str) -> Path:
    if splits and split not in splits:
        raise DataError(f"{str(root)!r} has the splits {', '.join(splits)} but no {split!r}; choose one of them")
    if not splits and split != "train":
        raise DataError(
            f"{str(root)!r} is not divided into splits, so it has no {split!r}; "
            f"move its pictures to train/CLASS/ and {split}/CLASS/, or read it as 'train'"
        )
    return splits.get(split, root)


def _concepts(chosen: Path, splits: dict[str, Path]) -> tuple[str, ...]:
    """Classes of all splits together, so that every split counts them alike."""
    names = sorted({name for folder in splits.values() or [chosen] for name in _folders(folder)})
    if not names:
        raise DataError(
            f"{str(chosen)!r} has no class folders and no pictures; put each class in its own, as in "
            f"{chosen.name}/cat/1.png and {chosen.name}/dog/2.png"
        )
    return tuple(names)


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]


def _pictures(folder: Path) -> list[Path]:
    return sorted(one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())


def _as_id(path: Path) -> str:
    """A path as text that UTF-8 can hold, whatever bytes the file system has in it."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
