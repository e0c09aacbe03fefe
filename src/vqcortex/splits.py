"""What an image is for: to train, to choose, to test; and how others spell that."""

from __future__ import annotations

SPELLINGS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
SPLITS = tuple(SPELLINGS)


def split_of(text: str) -> str | None:
    """The split that a word stands for; None: it stands for none."""
    return next((split for split, spellings in SPELLINGS.items() if text.lower() in spellings), None)
