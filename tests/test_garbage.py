"""Pausing the search for garbage: only within, and as it was afterwards."""

import gc

import pytest

from detr_fast.garbage import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_before_afterwards(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(KeyError), uncollected():
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
