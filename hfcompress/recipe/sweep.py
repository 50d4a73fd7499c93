"""Former place of `hfcompress.sweep.run`, kept for one release."""

from hfcompress.sweep.run import SweepResult, report, run

__all__ = ["SweepResult", "report", "run"]
