"""Run code in a process that has imported neither transformers nor hfcompress.

One server for each session of tests imports torch and the libraries beside it, which takes
seconds, and forks once for each run. Started as a script, this file is the server.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
_LIBRARIES = (
    "torch", "torch._dynamo", "torch.distributed.tensor", "torch.utils.data", "accelerate",
    "datasets", "pandas", "scipy.stats", "safetensors.torch", "tokenizers", "pydantic", "yaml",
)  # fmt: skip
_SECONDS = 240


class FreshProcessError(AssertionError):
    """A run ended with an exit status that is not 0."""


def run_fresh(code: str | Path, *arguments: str) -> str:
    """What code, or a script, prints in a fresh process."""
    (done,) = run_together(code, *arguments, environments=[{}])
    if done.returncode:
        raise FreshProcessError(f"exit status {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def run_ranks(script: Path, *arguments: str, count: int = 2) -> None:
    """Run a script as the processes of one distributed training on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    for done in run_together(script, *arguments, environments=ranks):
        if done.returncode:
            raise FreshProcessError(f"exit status {done.returncode}\n{done.stderr[-3000:]}")


def run_together(
    code: str | Path, *arguments: str, environments: list[dict[str, str]]
) -> list[subprocess.CompletedProcess[str]]:
    """Run code once for each environment, at the same time, each in a fresh process."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        outputs = [(f"{folder}/{n}.out", f"{folder}/{n}.err") for n in range(len(environments))]
        runs = [
            {
                "script": isinstance(code, Path), "code": str(code), "argv": ["-c", *arguments],
                "environment": environment, "outputs": files,
            }
            for environment, files in zip(environments, outputs, strict=True)
        ]  # fmt: skip
        server.stdin.write(json.dumps(runs) + "\n")
        server.stdin.flush()
        statuses = json.loads(server.stdout.readline())
        return [
            subprocess.CompletedProcess([str(code)], status, *(Path(p).read_text() for p in files))
            for status, files in zip(statuses, outputs, strict=True)
        ]


@functools.cache
def _server() -> subprocess.Popen[str]:
    import torch

    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={
            **os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
        },
    )  # fmt: skip

    def stop() -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.close()
        server.wait()
        server.stdout.close()

    atexit.register(stop)
    return server


def _serve() -> None:
    for library in _LIBRARIES:
        importlib.import_module(library)
    assert not {"transformers", "hfcompress"} & set(sys.modules)
    for line in sys.stdin:
        children = []
        for run in json.loads(line):
            child = os.fork()
            if not child:
                _carry_out(run)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


def _carry_out(run: dict[str, Any]) -> NoReturn:
    status = 1
    with contextlib.suppress(BaseException):
        signal.alarm(_SECONDS)  # ends the process where a run hangs
        for stream, path in enumerate(run["outputs"], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(run["environment"])
        sys.argv = run["argv"]
        try:
            if run["script"]:
                runpy.run_path(run["code"], run_name="__main__")
            else:
                exec(compile(run["code"], "<fresh>", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # without the server's own handlers at the end of a process


if __name__ == "__main__":
    sys.path.pop(0)  # tests/ itself, where a script finds its neighbours
    _serve()
