"""Full disks, folders that are only read, few open files, other clocks, flipped bits, company."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

from benchmarks._fault_processes import Place, Run, start
from benchmarks._fault_scenarios import (
    Bench,
    Result,
    Scenario,
    Skipped,
    forked_workers,
    mount,
    remount,
    unmount_below,
)

SHARED_MEMORY = Path("/dev/shm")  # nosec B108  # of a mount namespace of its own
OTHERS = {
    "stop": ("SIGTERM",) * 4 + ("SIGINT",) * 4,
    "full disk": ("run's folder",) * 6 + ("cache",) * 6,
    "read-only": ("run's folder", "cache", "cache that is filled"),
    "no folder": ("cache",),
    "open files": ("64", "64 with workers"),
    "full /dev/shm": ("workers",),
    "clock set back": ("finetune", "distill"),
    "flipped bit": ("cache entry", "teacher's answers", "checkpoint"),
    "at once": ("2 in a folder", "4 in a folder", "2 with one cache", "4 with one cache"),
}


# --- disks, folders, limits -----------------------------------------------------------------


def full_disk(bench: Bench, which: str, draw: random.Random, result: Result) -> None:
    case = draw.choice(("finetune", "pipeline", "quantize", "shrink"))
    bench.undisturbed(case)
    place = bench.place()
    folder = place.output if which == "run's folder" else place.cache
    size = int(2 ** draw.uniform(2, 10))
    mount(folder, "tmpfs", f"size={size}k")
    run = start(bench.arguments(case, place), place, forked_workers)
    code = run.wait()
    bench.check_printed(run, result)
    if which == "cache":
        bench.judge(case, place, run, code, result)
        return
    remount("-o", "remount,size=64m", str(folder))
    bench.finish(case, place, result)


def read_only(bench: Bench, which: str, draw: random.Random, result: Result) -> None:
    place = bench.place()
    bench.undisturbed("finetune")
    if which != "cache":
        run = start(bench.arguments("finetune", place), place)
        assert run.wait() == 0, run.printed
    folder = place.output if which == "run's folder" else place.cache
    mount(folder, "bind")
    remount("-o", "remount,ro,bind", str(folder))
    if which != "run's folder":
        shutil.rmtree(place.output, ignore_errors=True)
    run = start(bench.arguments("finetune", place), place)
    code = run.wait()
    if which != "run's folder":
        bench.judge("finetune", place, run, code, result)
        return
    bench.check_printed(run, result)
    if code != 2:
        result.problems["cannot go on"] += 1
        result.detail = f"exit code {code}: {run.printed[-300:]}"
    unmount_below(place.root)
    bench.finish("finetune", place, result)


def no_folder(bench: Bench, _: str, draw: random.Random, result: Result) -> None:
    bench.undisturbed("finetune")
    path = bench.root / "a file"
    path.write_text("not a folder")
    place = bench.place()
    shutil.rmtree(place.cache)

    def hook() -> None:
        os.environ["HFCOMPRESS_CACHE"] = str(path)

    run = start(bench.arguments("finetune", place), place, hook)
    bench.judge("finetune", place, run, run.wait(), result)


def open_files(bench: Bench, which: str, draw: random.Random, result: Result) -> None:
    case = "workers" if "workers" in which else "pipeline"
    bench.undisturbed(case)

    def hook() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    place = bench.place()
    run = start(bench.arguments(case, place), place, hook)
    bench.judge(case, place, run, run.wait(), result)


def full_shm(bench: Bench, _: str, draw: random.Random, result: Result) -> None:
    bench.undisturbed("workers")

    def hook() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS
            os._exit(99)
        remount("--make-rprivate", "/")
        mount(SHARED_MEMORY, "tmpfs", "size=4k")
        (SHARED_MEMORY / "full").write_bytes(b"x" * 4096)

    place = bench.place()
    run = start(bench.arguments("workers", place), place, hook)
    code = run.wait()
    if code == 99:
        raise Skipped("this user may not make a mount namespace")
    result.detail = " ".join(run.printed.split())[-160:]
    bench.check_printed(run, result)
    bench.check_processes(run, result)
    bench.finish("workers", place, result)


# --- clocks, bits, company ------------------------------------------------------------------


def clock(bench: Bench, case: str, draw: random.Random, result: Result) -> None:
    """Kill a run whose files come from the future of the one that goes on."""
    place = bench.place()
    run = start(bench.arguments(case, place), place)
    run.wait(draw.uniform(0.5, 1.0) * bench.undisturbed(case).seconds)
    run.signal(signal.SIGKILL)
    run.wait(10)
    future = time.time() + 10 * 24 * 3600
    for path in place.root.rglob("*"):
        os.utime(path, (future, future))
    bench.finish(case, place, result)


def flip(bench: Bench, which: str, draw: random.Random, result: Result) -> None:
    case = "finetune" if which == "checkpoint" else "distill"
    bench.undisturbed(case)
    place = bench.place()
    run = start(bench.arguments(case, place), place)
    checkpoints = "steps/*.partial/checkpoint-*/digests.json"
    while which == "checkpoint" and run.wait(0.01) is None:
        if any(place.cache.glob(checkpoints)):
            run.signal(signal.SIGKILL)
    run.wait()
    top, pattern = {
        "cache entry": (place.cache, "steps/*/model.safetensors"),
        "teacher's answers": (place.datasets, "hfcompress-teachers/*/*.npy"),
        "checkpoint": (place.cache, checkpoints.replace("digests.json", "*.pt")),
    }[which]
    files = sorted(top.glob(pattern))
    for path in files:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    result.detail = f"{len(files)} files"
    shutil.rmtree(place.output, ignore_errors=True)
    if which == "teacher's answers":
        shutil.rmtree(place.cache / "steps")
    bench.finish(case, place, result)


def at_once(bench: Bench, which: str, draw: random.Random, result: Result) -> None:
    number, one_folder = int(which[0]), which.endswith("folder")
    bench.undisturbed("distill")
    first = bench.place()
    places = [first if one_folder else bench.place(first.cache) for _ in range(number)]
    runs: list[tuple[Run, tuple[str, ...]]] = []
    for place in places:
        options: tuple[str, ...] = ("--wait",) if one_folder and draw.random() < 0.5 else ()
        logged = Place(place.root, place.shared_cache, f"log-{len(runs)}.txt")
        runs.append((start(bench.arguments("distill", place, *options), logged), options))
        time.sleep(draw.uniform(0, 0.3))
    for run, options in runs:
        code = run.wait()
        bench.check_printed(run, result)
        refused = one_folder and not options and code == 2 and "is in use by" in run.printed
        if code != 0 and not refused:
            result.problems["cannot go on"] += 1
            result.detail = f"exit code {code}: {run.printed[-300:]}"
    trained = sum("kept from" not in run.printed for run, _ in runs)
    if not one_folder and trained > 1:
        result.detail = f"{trained} runs trained the same"
    for place in {place.root: place for place in places}.values():
        bench.finish("distill", place, result)


SCENARIOS: dict[str, Scenario] = {
    "kill": Bench.kill,
    "aim": Bench.aim,
    "stop": Bench.stop,
    "full disk": full_disk,
    "read-only": read_only,
    "no folder": no_folder,
    "open files": open_files,
    "full /dev/shm": full_shm,
    "clock set back": clock,
    "flipped bit": flip,
    "at once": at_once,
}
