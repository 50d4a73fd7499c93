"""The script that `hfcompress completion` prints, in a shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hfcompress.cli import main
from hfcompress.cli.completion import completion_script


def test_a_shell_completes_commands_options_and_recipes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    asked = [["pru"], ["prune", "--sparsi"], ["run", "quickst"], ["report", "mi"], ["run", "--dry"]]
    (tmp_path / "mine").mkdir()
    calls = "".join(
        f"COMP_WORDS=(hfcompress {' '.join(words)}); COMP_CWORD={len(words)}; _hfcompress; "
        f'echo "${{COMPREPLY[*]}}"\n'
        for words in asked
    )
    done = subprocess.run(
        [bash, "--norc", "-c", completion_script("bash") + calls],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["prune", "--sparsity", "quickstart", "mine", "--dry-run"]


def test_zsh_reads_it_as_bash_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("autoload -U +X bashcompinit")
    assert shown.endswith(completion_script("bash"))
