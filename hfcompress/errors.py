"""Every error that hfcompress raises on purpose.

::

    HfcompressError                    exit code 1: something failed on the way
    └── BadInputError                  exit code 2: what was asked for cannot be done
        ├── MissingExtraError          an optional package is not installed (also an ImportError)
        ├── ConfigError                a field of a recipe or a config: unknown, missing, wrong
        ├── TargetError                a module pattern that matches nothing, nothing to compress
        ├── SourceError                a model or data path, package or hub that cannot be reached
        ├── DataError                  data that is there and cannot be used
        ├── ModelError                 a model that is there and cannot be used
        ├── CalibrationError           calibration data or statistics that cannot be used
        └── OutputError                an output folder that cannot be used

Each message is one sentence that says what is wrong, where, and what to write instead.
This file imports nothing.
"""


class HfcompressError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class BadInputError(HfcompressError):
    """The request itself cannot be honoured; nothing has been written."""

    exit_code = 2


class MissingExtraError(BadInputError, ImportError):
    """An optional package is needed and not installed; the message holds the pip command."""


class ConfigError(BadInputError):
    """A recipe or config with an unknown, missing or invalid field."""


class TargetError(BadInputError):
    """A module pattern that matches nothing, or a model with nothing to compress."""


class SourceError(BadInputError):
    """A model or data source (hub name, path, package) that cannot be reached."""


class DataError(BadInputError):
    """A data set that is there and cannot be used as the recipe asks."""


class ModelError(BadInputError):
    """A model that is there and cannot be used as asked."""


class CalibrationError(BadInputError):
    """Calibration data, or statistics collected from them, that cannot be used."""


class OutputError(BadInputError):
    """An output folder that cannot be used: read-only, or another recipe's."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, short enough for one sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
