"""Values of settings from Python: texts become what the command line would make of them."""

from pathlib import Path

from compress.core.options import check_value, settings_of
from compress.ship.bundle.settings import ShipConfig


def test_a_text_is_a_path_where_the_setting_is_one():
    settings = {one.name: one for one in settings_of(ShipConfig)}
    assert check_value(settings["history"], "verdicts.sqlite") == Path("verdicts.sqlite")
    assert check_value(settings["history"], Path("a")) == Path("a") and check_value(settings["history"], None) is None
