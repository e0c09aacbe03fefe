"""Everything vqcortex raises on purpose.

VqCortexError
├─ ShapeError          a tensor does not have the axes the signature names
├─ TokenError          a code index lies outside the codebook
├─ UnknownName         a registry has no entry under that name
├─ StoreError          a token store is missing, foreign, or torn
├─ DataError           an image source or a table cannot be read
├─ ModelError          a checkpoint is missing, altered, or not of the family it claims
├─ StudyError          a study folder cannot be written or read
├─ ConfigError         one or more settings are wrong (lists them all)
├─ TrustError          explanations would be of low trust, and trust was required
└─ MissingExtra        an optional dependency is not installed

A message says what is wrong, with the value; what would be right, with the numbers; the next step.
Deep code gives the reason; `within` lets the code that knows add where it happened.
"""

from __future__ import annotations


class VqCortexError(Exception):
    """A mistake the caller can mend; the command line prints it as one line and exits with code 2."""

    exit_code = 2

    def within(self, **where: object) -> VqCortexError:
        """Return self with one more line that says what was being worked on."""
        place = ", ".join(f"{name}={value}" for name, value in where.items())
        self.args = (f"{self}\n  while working on: {place}",)
        return self

    # KeyError-like subclasses print the repr of their message; a message is for reading.
    __str__ = Exception.__str__


class ShapeError(VqCortexError):
    """A tensor does not have the axes the signature names."""


class TokenError(VqCortexError):
    """A code index lies outside the codebook."""


class UnknownName(VqCortexError, KeyError):
    """A registry has no entry under that name."""

    __str__ = Exception.__str__


class StoreError(VqCortexError):
    """A token store is missing, foreign, or torn."""


class DataError(VqCortexError):
    """An image source or a table cannot be read."""


class ModelError(VqCortexError):
    """A checkpoint is missing, altered, or not of the family it claims."""


class StudyError(VqCortexError):
    """A study folder cannot be written or read."""


class ConfigError(VqCortexError):
    """One or more settings are wrong; the message lists them all."""


class TrustError(VqCortexError):
    """Explanations would be of low or unknown trust, and trust was required; exit code 3."""

    exit_code = 3


class MissingExtra(VqCortexError, ImportError):
    """An optional dependency is not installed."""

    __str__ = Exception.__str__
