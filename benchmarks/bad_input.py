"""Damaged and hostile input: how each of some thousand pieces of it ends.

    python -m benchmarks.bad_input --json benchmarks/results/bad_input.json

Sound recipes, checkpoints, quantized folders, teacher caches and run folders are made, copied,
damaged by a seeded draw (`_mutations`) and given to the command line, each in a forked child that
is watched (`_watched`). A piece is a fault if it ends in anything but exit code 0 or 2, a
traceback, more than one sentence, more than 5 s of processor time or 500 MB above the start, a
file written outside of its output folder, code of the input that ran, or an answer that differs
from the undamaged one's without a word.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _bad_input_samples as samples
from benchmarks._bad_input_recipes import mutate_recipe
from benchmarks._figures import Figure, parse_arguments, report
from benchmarks._mutations import mutate_file
from benchmarks._watched import Ended, listing, single_threaded, watched
from hfcompress.errors import HfcompressError
from hfcompress.recipes.library import shipped_recipes
from hfcompress.utils import quiet_libraries

COUNTS = {"recipes": 2000, "checkpoints": 400, "quantized": 200, "caches": 100, "runs": 100}
BACKENDS = ("torch", "onnxruntime", "openvino", "torchao")
SECONDS, MEGABYTES = 5.0, 500.0
_NEXT = "--- the next command"
Body = Callable[[], tuple[int, object]]


@dataclass(frozen=True)
class Case:
    """One damaged input.

    Attributes:
        kind: a key of `COUNTS`.
        number: its place among those.
        what: the damage in a few words.
        ended: how it ended.
        faults: what is wrong with that; empty where nothing is.
    """

    kind: str
    number: int
    what: str
    ended: Ended
    faults: tuple[str, ...]


class Laboratory:
    """Sound samples, and the folders in which damaged copies are tried.

    Args:
        root: gets everything.
        backends: engines of the quantized folders.
    """

    def __init__(self, root: Path, backends: tuple[str, ...] = BACKENDS) -> None:
        self.root, self.sound, self.inside = root, root / "sound", root / "inside"
        self.canary = root / samples.CANARY
        self.sound.mkdir(parents=True)
        self.inside.mkdir()
        made = watched(lambda: (self._make(backends), None), root, root / "none", limit=600)
        if made.code != 0:
            raise RuntimeError(f"the samples were not made: {made.output}")
        self.expected: dict[str, Any] = {}

    def _make(self, backends: tuple[str, ...]) -> int:
        _private(self.inside)
        samples.make_samples(self.sound, self.canary, backends)
        return 0

    def cases(self, kind: str, count: int, seed: int, only: int | None = None) -> Iterator[Case]:
        """Damage samples of a kind and try them.

        Args:
            kind: a key of `COUNTS`.
            count: how many.
            seed: of the damage; the same case has the same damage in every run.
            only: the number of one case.
        """
        for number in range(count) if only is None else [only]:
            yield self._case(kind, number, random.Random(f"{seed} {kind} {number}"))

    def _case(self, kind: str, number: int, draw: random.Random) -> Case:
        shutil.rmtree(self.inside, ignore_errors=True)
        self.inside.mkdir()
        source, given, what, body = _PARTS[kind](self, draw)
        expected = self._expected(kind, source)
        before = listing(self.root, self.inside)
        ended = watched(body, self.inside, given)
        faults = find_faults(ended)
        if ended.code is not None:
            faults += _wrong_answers(kind, ended, expected)
        if listing(self.root, self.inside) != before:
            faults.append("wrote outside")
        if self.canary.exists() or list(self.inside.rglob(samples.CANARY)):
            faults.append("ran code")
            self.canary.unlink(missing_ok=True)
        return Case(kind, number, f"{source.name}: {what}", ended, tuple(faults))

    def _expected(self, kind: str, source: Path) -> Any:
        """The answer of the undamaged sample."""
        if str(source) not in self.expected:
            body = {"checkpoints": _checkpoint, "quantized": _quantized}.get(kind)
            if body is not None:
                folder = samples.copied(source, self.inside / "undamaged" / source.name)
                self.expected[str(source)] = self._sound_answer(lambda: body(folder))
                shutil.rmtree(folder.parent)
            elif kind == "caches":
                self.expected[str(source)] = self._sound_answer(lambda: _sound_cache(source))
            else:
                rows = samples.rows_of(source) if kind == "runs" else None
                self.expected[str(source)] = rows
        return self.expected[str(source)]

    def _sound_answer(self, body: Body) -> object:
        ended = watched(body, self.inside, self.root / "none", limit=60)
        if ended.code != 0 or ended.answer is None:
            raise RuntimeError(f"an undamaged sample is refused: {ended.output}")
        return ended.answer


def find_faults(ended: Ended) -> list[str]:
    """What is wrong with the way in which a case ended, whatever it was."""
    found = []
    if ended.code is None:
        found.append("no exit code")
    elif ended.code not in (0, 2):
        found.append(f"exit code {ended.code}")
    if "Traceback" in ended.output:
        found.append("traceback")
    sentences = [part.count("error:") for part in ended.output.split(_NEXT)]
    if max(sentences) > 1 or (ended.code == 2 and not any(sentences)):
        found.append("not one sentence")
    if ended.seconds > SECONDS:
        found.append("slow")
    if ended.megabytes > MEGABYTES:
        found.append("memory")
    return found + ["wrote outside"] * bool(ended.writes) + ["ran code"] * bool(ended.runs)


def _wrong_answers(kind: str, ended: Ended, expected: Any) -> list[str]:
    """Whether a loaded model, or rows, differ from the undamaged ones."""
    if kind == "recipes":
        return []
    answer: Any = ended.answer or {}
    said = "note:" in ended.output
    wrong = [
        name for name, found in answer.items()
        if not isinstance(found, str) and not samples.same(found, expected[name])
        and not (said and name == "rows")
    ] if kind != "runs" else [
        name for name, found in answer.items() if not samples.same(found, expected)
    ]  # fmt: skip
    return [f"half loaded ({', '.join(wrong)})"] if wrong else []


# --- what is tried -----------------------------------------------------------------------------


def _private(inside: Path) -> None:
    """Let libraries keep their files in the one folder that may be written."""
    import datasets.config

    for name in ("TMPDIR", "HOME", "HFCOMPRESS_CACHE", "XDG_CACHE_HOME"):
        os.environ[name] = str(inside / "private")
    (inside / "private").mkdir(exist_ok=True)
    tempfile.tempdir = None
    datasets.config.HF_DATASETS_CACHE = inside / "private" / "datasets"
    datasets.config.HF_CACHE_HOME = str(inside / "private")


def _command(inside: Path, *arguments: str) -> int:
    from hfcompress.cli import main

    _private(inside)
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def _recipe_case(laboratory: Laboratory, draw: random.Random) -> tuple[Path, Path, str, Body]:
    inside, runs = laboratory.inside, draw.random() < 0.15
    known = sorted((laboratory.sound / "recipes").glob("*.yaml"))
    shipped = sorted(shipped_recipes().values())
    source = draw.choice(known if runs or draw.random() < 0.2 else shipped)
    given = inside / "given"
    given.mkdir()
    for planted in (laboratory.sound / "recipes").glob("*.py"):
        shutil.copy(planted, given)
    content, what = mutate_recipe(source.read_text(encoding="utf-8"), draw, runs)
    (given / source.name).write_bytes(content)
    path = str(given / source.name)
    if not runs:
        return source, given, what, lambda: (_command(inside, "validate", path), None)
    output = str(inside / "out")
    return source, given, f"run, {what}", lambda: (
        _command(inside, "run", path, "--output", output), None
    )  # fmt: skip


def _folder_case(
    laboratory: Laboratory, draw: random.Random, kind: str, body: Callable[[Path], Any]
) -> tuple[Path, Path, str, Body]:
    source = draw.choice(sorted((laboratory.sound / kind).iterdir()))
    given = samples.copied(source, laboratory.inside / "given" / source.name)
    weights = {".safetensors": 4.0, ".json": 2.0, ".onnx": 3.0, ".bin": 3.0, ".xml": 2.0}
    what = mutate_file(samples.choose_file(given, draw, weights), draw)
    return source, given, what, lambda: body(given)


def _checkpoint(folder: Path) -> tuple[int, object]:
    from hfcompress.models.loading import ModelConfig, load_model
    from hfcompress.tasks.registry import find_task

    image = folder.name == "image"
    task = f"{'image' if image else 'text'}-classification"
    code = _command(folder.parents[1], "inspect", str(folder), "--task", task)
    answer: dict[str, object] = {}
    if code == 0:
        loaded = load_model(ModelConfig(path=str(folder)), find_task(task), processor=False)
        names = [str(name) for name in (loaded.model.config.id2label or {}).values()]
        if folder.name == "plain":  # its numbers have no digest: what is in the file counts
            return code, {"made up": samples.made_up(loaded.model, folder)}
        answer |= {"ours": samples.logits_of(loaded.model), "labels": names}
    if folder.name != "plain":
        answer["theirs"] = samples.plain_load(folder)
    return code, answer


def _quantized(folder: Path) -> tuple[int, object]:
    import hfcompress

    code = _command(folder.parents[1], "predict", str(folder), *samples.TEXTS)
    if code:
        return code, {}
    classify = hfcompress.load(folder)
    return 0, {"scores": classify.scores(samples.TEXTS).tolist(), "labels": list(classify.labels)}


def _cache_case(laboratory: Laboratory, draw: random.Random) -> tuple[Path, Path, str, Body]:
    (source,) = (path for path in (laboratory.sound / "caches").iterdir() if path.is_dir())
    given = samples.copied(source, laboratory.inside / "given" / source.name)
    what = mutate_file(samples.choose_file(given, draw, {}), draw)
    return source, given, what, lambda: _cache(given, laboratory.sound)


def _cache(folder: Path, sound: Path) -> tuple[int, object]:
    from hfcompress.distillation.cache import TeacherCache

    _private(folder.parents[1])
    code, answer = 0, {}
    try:
        answer["opened"] = samples.cache_answers(TeacherCache.open(folder))
    except HfcompressError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    rebuilt = samples.teacher_cache(sound, folder.parent, damaged=print)
    answer["rebuilt"] = samples.cache_answers(rebuilt)
    return code, answer


def _sound_cache(folder: Path) -> tuple[int, object]:
    from hfcompress.distillation.cache import TeacherCache

    answers = samples.cache_answers(TeacherCache.open(folder))
    return 0, {"opened": answers, "rebuilt": answers}


def _run_case(laboratory: Laboratory, draw: random.Random) -> tuple[Path, Path, str, Body]:
    source = laboratory.sound / "runs" / "small"
    given = samples.copied(source, laboratory.inside / "given" / "small")
    what = mutate_file(samples.choose_file(given, draw, {".jsonl": 6.0, ".png": 0.2}), draw)
    recipe = laboratory.sound / "recipes" / "small.yaml"
    return source, given, what, lambda: _run_folder(given, recipe)


def _run_folder(folder: Path, recipe: Path) -> tuple[int, object]:
    """Draw a run's page again; then go on with the run, after which all of its rows are right."""
    inside = folder.parents[1]
    code = _command(inside, "report", str(folder))
    print(_NEXT, flush=True)
    again = _command(inside, "run", str(recipe), "--output", str(folder))
    if again == 0:
        return code, {"rows": samples.rows_of(folder)}
    return max(code, again), {}


_PARTS: dict[str, Callable[[Laboratory, random.Random], tuple[Path, Path, str, Body]]] = {
    "recipes": _recipe_case,
    "checkpoints": lambda place, draw: _folder_case(place, draw, "checkpoints", _checkpoint),
    "quantized": lambda place, draw: _folder_case(place, draw, "quantized", _quantized),
    "caches": _cache_case,
    "runs": _run_case,
}


# --- the table ---------------------------------------------------------------------------------


def main() -> None:
    options = {kind: f"how many (default {count})" for kind, count in COUNTS.items()}
    arguments = parse_arguments(
        __doc__, seed="of the damage (default 0)",
        case="KIND/NUMBER: this one alone, with what it printed", **options,
    )  # fmt: skip
    quiet_libraries()
    _import_all()
    counts = {kind: int(getattr(arguments, kind) or count) for kind, count in COUNTS.items()}
    seed = int(arguments.seed or 0)
    with tempfile.TemporaryDirectory() as folder, single_threaded():
        backends = tuple(filter(importlib.util.find_spec, BACKENDS))  # called as their packages
        laboratory = Laboratory(Path(folder).resolve() / "laboratory", backends)
        if arguments.case:
            kind, _, number = arguments.case.partition("/")
            for case in laboratory.cases(kind, 1, seed, int(number)):
                print(case.what, case.ended, case.ended.output, *case.faults, sep="\n")
            return
        done: list[Case] = []
        for kind, count in counts.items():
            for case in laboratory.cases(kind, count, seed):
                done.append(case)
                if case.faults:
                    _tell(case)
    report(figures(done, counts), "bad_input", arguments.json)


def _tell(case: Case) -> None:
    ending = (case.ended.output.strip().splitlines() or [""])[-1]
    extra = "; ".join((*case.ended.writes[:2], *case.ended.runs[:2]))
    print(
        f"{case.kind}/{case.number} {', '.join(case.faults)}: {case.what[:150]} -> "
        f"{ending[:200]} {extra[:200]}", flush=True,
    )  # fmt: skip


def figures(cases: list[Case], counts: dict[str, int]) -> list[Figure]:
    """A line for each kind, and one for each kind of fault."""
    found = []
    for kind, count in counts.items():
        these = [case for case in cases if case.kind == kind]
        refused = sum(case.ended.code == 2 for case in these)
        good = sum(not case.faults for case in these)
        found += [
            Figure(f"{kind}: refused, or loaded unharmed", good, f"of {count}",
                   target=f">= {count}", note=f"{refused} refused with exit code 2"),
            Figure(f"{kind}: slowest", max(case.ended.seconds for case in these), "s",
                   target=f"<= {SECONDS:g}"),
            Figure(f"{kind}: most memory above the start",
                   max(case.ended.megabytes for case in these), "MB", target=f"<= {MEGABYTES:g}"),
        ]  # fmt: skip
    faults = Counter(fault.partition(" (")[0] for case in cases for fault in case.faults)
    for fault in ("traceback", "half loaded", "wrote outside", "ran code"):
        found.append(Figure(f"all: {fault}", faults[fault], "cases", target="<= 0"))
    return found


def _import_all() -> None:
    """Import what the cases need, so that the children need not."""
    for name in (
        "hfcompress.cli.commands", "hfcompress.cli.inspect", "hfcompress.cli.display",
        "hfcompress.search.compress", "hfcompress.quantization.backends.torchao",
        "transformers.models.bert.modeling_bert", "transformers.models.vit.modeling_vit",
        "hfcompress.sweep.run", "hfcompress.report.write", "matplotlib.pyplot",
        *BACKENDS,
    ):  # fmt: skip
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"{name} is not installed")


if __name__ == "__main__":
    main()
