"""`qcompress check` notices damage: a seeded sample of the wounds of scripts/check_wounds.py."""

import importlib
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow  # runs whole jobs

SCRIPTS = Path(__file__).parents[2] / "scripts"
SAMPLE = 24


@pytest.fixture(scope="module")
def wounds() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("check_wounds")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def clinic(wounds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinic")
    return wounds.Clinic(wounds.make_patients(folder), folder)


def test_a_sample_of_wounds_is_noticed(wounds, clinic):
    explained = [case for case in wounds.cases(2) if case[1] not in wounds.REASONS]
    rows = list(wounds.examine(clinic, random.Random(1).sample(explained, SAMPLE)))
    assert [row for row in rows if row["digests"] != "error" or row["source"] is None] == []


def test_damage_that_rounding_hides_is_noticed_with_digests_only(wounds, clinic):
    case = ("packed values", "the lowest bit of one code", "gptq", 0)
    (row,) = wounds.examine(clinic, [case])
    assert row["digests"] == "error" and row["source"] is None
    assert wounds.summary([row])["missed"][0]["reason"].startswith("one step of one weight")


def test_healthy_layouts_have_only_warnings_about_shapes(wounds, clinic):
    for layout in wounds.LAYOUTS:
        for digests in (True, False):
            found = clinic.findings(wounds.copy_of(clinic, layout), digests=digests)
            assert {rule for rule, _, _ in found} == {"T4"} and set(found.values()) == {"warning"}


def test_there_are_enough_kinds_and_wounds(wounds):
    cases = wounds.cases(2)
    assert len(cases) >= 300 and len({case[:2] for case in cases}) >= 40


def test_the_published_result_is_complete_and_the_page_has_its_numbers(wounds, request):
    docs = request.config.rootpath / "docs/results"
    stored, page = json.loads((docs / "data/wounds.json").read_text()), (docs / "damage.md").read_text()
    assert stored["wounds"] == len(wounds.cases(2)) and f"{stored['kinds']} kinds" in page
    assert stored["digests"]["percent"] == 100 and stored["source"]["percent"] >= 95
    assert {row["reason"] for row in stored["missed"]} <= set(wounds.REASONS.values())
    for name in ("digests", "source"):
        assert f"| {stored['wounds']} | {stored[name]['noticed']} ({stored[name]['percent']:g} %) |" in page
