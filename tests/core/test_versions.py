from importlib.metadata import version

from compress.core.versions import installed_versions


def test_versions_are_those_of_the_metadata_and_missing_packages_are_left_out():
    assert installed_versions(("torch", "no-such-package")) == {"torch": version("torch")}
    assert "qcompress" in installed_versions()
