"""Planted worlds: token grids in which it is known what makes the concept, so that explanations can be marked.

A world is added by writing its file and one line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqcortex.registry import Registry

if TYPE_CHECKING:
    from vqcortex.worlds.protocol import Kind

WORLDS: Registry[Kind] = Registry("planted world")
WORLDS.add("single", "vqcortex.worlds.single:SINGLE")
WORLDS.add("any_of", "vqcortex.worlds.any_of:ANY_OF")
WORLDS.add("pair", "vqcortex.worlds.pair:PAIR")
WORLDS.add("exclusive_or", "vqcortex.worlds.exclusive_or:EXCLUSIVE_OR")
WORLDS.add("placed", "vqcortex.worlds.placed:PLACED")
WORLDS.add("confounder", "vqcortex.worlds.confounder:CONFOUNDER")
WORLDS.add("shortcut", "vqcortex.worlds.shortcut:SHORTCUT")
WORLDS.add("null", "vqcortex.worlds.null:NULL")
