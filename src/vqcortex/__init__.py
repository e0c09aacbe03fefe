"""What do the discrete tokens of an image generator mean?

Names are found on first use, so that `import vqcortex` loads nothing heavy and sets nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

# Public name to the module that defines it; sorted, and tested against what is there.
_PUBLIC = {
    "build_extractor": "vqcortex.extractors.protocol",
    "build_method": "vqcortex.attribution.protocol",
    "load_judges": "vqcortex.judges",
    "load_model": "vqcortex.adapters",
    "load_trained": "vqcortex.extractors.checkpoint",
    "open_images": "vqcortex.images",
    "open_store": "vqcortex.tokens.store",
    "run": "vqcortex.pipelines.run",
    "RunSettings": "vqcortex.pipelines.settings",
    "Study": "vqcortex.pipelines.study",
    "VqCortexError": "vqcortex.errors",
}

__all__ = sorted(_PUBLIC, key=str.casefold)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vqcortex' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
