import gc

import pytest

from compress.cli.console import imports


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_after_imports_as_it_was_before(collecting):
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with imports():
            assert not gc.isenabled()
        assert gc.isenabled() is collecting
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
