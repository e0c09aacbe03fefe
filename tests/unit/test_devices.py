"""Devices of this machine."""

import pytest

from vqcortex.devices import check_device
from vqcortex.errors import ConfigError


def test_the_cpu_is_always_there():
    check_device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_other_names_list_what_there_is(name):
    with pytest.raises(ConfigError, match=rf"device={name!r} is not on this machine; it has: cpu"):
        check_device(name)
