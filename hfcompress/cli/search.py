"""``hfcompress compress`` and ``hfcompress certify``: a smaller model, and how much it may lose."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from hfcompress.cli.display import Display
from hfcompress.cli.output import print_json
from hfcompress.data.config import DataConfig
from hfcompress.report.pipeline import pipeline_rows
from hfcompress.search.certify import certify
from hfcompress.search.compress import compress, data_config, plan_search
from hfcompress.search.target import CompressTarget
from hfcompress.utils import size_text


def compress_command(options: argparse.Namespace, console: Console) -> int:
    """Run ``hfcompress compress``; returns the exit code, 1 where no model meets the target."""
    names = CompressTarget.model_fields.keys() - {"latency"}
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    shape = {name: getattr(options, name) for name in ("batch_size", "length", "fixed")}
    target = CompressTarget.from_dict({**given, "latency": shape}, "compress")
    output = Path(options.output or Path("runs") / f"compress-{Path(options.model).name}")
    data = data_config(options.data, options.set)
    if options.dry_run:
        return _show_candidates(target, data, options, console)
    with Display(console, options.quiet) as display:
        result = compress(
            options.model, data, target, output=output, task=options.task, progress=display,
            wait=options.wait, seed=options.seed or 0, device=options.device,
        )  # fmt: skip
    if options.json:
        print_json(result.rows)
    elif result.rows:
        console.print(pipeline_rows(result.rows))
    console.print(result.sentence)
    if result.model is None:
        return 1
    console.print(f'use it: hfcompress predict {result.model} "a sentence"')
    if options.fixed:
        batch = f"({options.batch_size}, {options.length})"
        console.print(f'that fast in Python: load("{result.model}", shape={batch})')
    return 0 if result.measured is None or result.measured.holds(target.max_drop) else 1


def _show_candidates(
    target: CompressTarget, data: DataConfig | None, options: argparse.Namespace, console: Console
) -> int:
    with Display(console, options.quiet) as display:
        planned = plan_search(
            options.model, data, target, task=options.task, progress=display,
            seed=options.seed or 0, device=options.device,
        )  # fmt: skip
    if options.json:
        print_json(planned)
        return 0
    for one in planned:
        console.print(f"{size_text(one['bytes']):>9s}  {one['candidate']}")
    return 0


def certify_command(options: argparse.Namespace, console: Console) -> int:
    """Run ``hfcompress certify``; returns the exit code, 1 where the bound does not hold."""
    data = data_config(options.data, options.set)
    assert data is not None  # the option is required
    with Display(console, options.quiet) as display:
        found = certify(
            options.dense, options.small, data, options.max_drop, options.confidence,
            task=options.task, progress=display,
        )  # fmt: skip
    if options.json:
        print_json([found.to_dict()])
    console.print(found.sentence)
    return 0 if found.certain else 1
