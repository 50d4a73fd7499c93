"""Look up the installed packages in PyPI's list of known vulnerabilities; `make lint` runs it.

python audit.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NotRequired, TypedDict

KNOWN: dict[str, str] = {}
"""Vulnerability -> the day on which it was looked at, and why it may stay."""


class Vulnerability(TypedDict):
    """One known vulnerability, as pip-audit prints it."""

    id: str
    fix_versions: list[str]


class Package(TypedDict):
    """One package, as pip-audit prints it."""

    name: str
    version: NotRequired[str]
    vulns: NotRequired[list[Vulnerability]]
    skip_reason: NotRequired[str]


def main() -> int:
    """Print what was found; returns the exit code. Without the list there is one line, and 0."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run(  # nosec B603 # our own arguments
        [*command, "--format", "json"], capture_output=True, text=True, check=False
    )
    try:
        packages: list[Package] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        packages = []
    reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    lines, code = judge(packages, KNOWN, reason)
    print("\n".join(lines))
    return code


def judge(packages: list[Package], known: dict[str, str], reason: str) -> tuple[list[str], int]:
    """What to print, and the exit code.

    Args:
        packages: as pip-audit prints them; empty where it failed.
        known: vulnerabilities that may stay.
        reason: its last line of error.
    """
    looked_up = [package for package in packages if "vulns" in package]
    if not looked_up:
        skipped = next((package.get("skip_reason", "") for package in packages), "")
        return [f"pip-audit: no package was looked up, nothing is known ({skipped or reason})"], 0
    found = {
        vulnerability["id"]: f"{package['name']} {package.get('version')}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for package in looked_up
        for vulnerability in package.get("vulns", ())
    }
    lines = [f"{line} ({known[key]})" if key in known else line for key, line in found.items()]
    lines += [
        f"{key} is listed in audit.py and not found; remove it" for key in known.keys() - found
    ]
    new = found.keys() - known.keys()
    lines.append(
        f"pip-audit: {len(looked_up)} packages looked up, {len(packages) - len(looked_up)} not "
        f"listed, {len(new)} vulnerabilities that nobody has looked at"
    )
    return lines, int(bool(new))


if __name__ == "__main__":
    sys.exit(main())
