"""Ways in which a checkpoint can be broken, and what has to be said of each."""

import re

import torch

SAID = {
    "missing": r"lacks 1 of the model's \d+ tensors \('{key}'\)",
    "left over": r"holds 1 that the model has no place for \('{key}.more'\)",
    "of another shape": r"'{key}' has shape \(.*\) where the model expects \(.*\)",
    "not a number": r"1 of \d+ numbers of '{key}' are NaN or infinite",
}


def damaged(tensors, key, how):
    """A copy of a state dict with one tensor broken."""
    found = dict(tensors)
    if how == "missing":
        del found[key]
    elif how == "left over":
        found[f"{key}.more"] = torch.zeros(1)
    elif how == "of another shape":
        found[key] = found[key][:-1].clone()
    else:
        found[key] = found[key].clone()
        found[key].view(-1)[0] = torch.nan
    return found


def said(how, key):
    """A pattern for the message."""
    return SAID[how].replace("{key}", re.escape(key))


def cut_short(source, target):
    """The first half of a file, under another name."""
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    return target
