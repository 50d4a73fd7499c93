"""The audit of the installed packages: what fails, what may stay, what could not be looked up."""

from __future__ import annotations

from audit import Package, judge

FOUND: Package = {
    "name": "torch", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}],
}  # fmt: skip
CLEAN: Package = {"name": "numpy", "version": "2.0", "vulns": []}


def test_a_vulnerability_fails_unless_it_is_known() -> None:
    lines, code = judge([FOUND, CLEAN], {}, "")
    assert code == 1
    assert lines[0] == "torch 2.0: PYSEC-1, fixed in 2.1"
    lines, code = judge([FOUND, CLEAN], {"PYSEC-1": "2026-11-29: on GPUs alone"}, "")
    assert code == 0
    assert lines[0].endswith("(2026-11-29: on GPUs alone)")


def test_an_entry_that_is_no_longer_found_is_named() -> None:
    lines, code = judge([CLEAN], {"PYSEC-1": "2026-11-29: on GPUs alone"}, "")
    assert code == 0
    assert lines[0] == "PYSEC-1 is listed in audit.py and not found; remove it"


def test_an_unreachable_list_is_said_in_one_line() -> None:
    skipped: Package = {"name": "torch", "skip_reason": "not found on PyPI"}
    for packages, reason in (([], "no network"), ([skipped], "not found on PyPI")):
        lines, code = judge(packages, {}, "no network")
        assert code == 0
        assert lines == [f"pip-audit: no package was looked up, nothing is known ({reason})"]
