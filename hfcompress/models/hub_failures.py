"""What went wrong with the hub, in one sentence each."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from hfcompress.config import nearest
from hfcompress.errors import HfcompressError, first_line
from hfcompress.models.hub import Source

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")
What = Literal["model", "data"]

SILENCE = 30.0  # seconds that the hub may take to answer
TRIES = 3


@dataclass(frozen=True)
class Failure:
    """What was asked for, to say what went wrong with it."""

    source: Source
    what: What
    instead: str
    revision: str

    def lasting(self, error: Exception) -> str | None:
        """Return the sentence of a failure that another try would meet again; None for others."""
        names, status, what = _names(error), _status(error), self.what
        name, copy = self.source.location, f"use a local copy: {self.instead}"
        if "GatedRepoError" in names:
            return (
                f"{what}: {name!r} is gated; accept its conditions at {self._page}, write: "
                f"hf auth login, or {copy}"
            )
        if "RevisionNotFoundError" in names:
            return f"{what}: {name!r} has no revision {self.revision!r}{self._near_revisions()}"
        if "DisabledRepoError" in names:
            return f"{what}: the hub has disabled {name!r}; {copy}"
        if status == 401 and "Invalid credentials" in str(error):
            return f"{what}: the hub does not accept your token; write: hf auth login"
        if "RepositoryNotFoundError" in names:
            kind = "data set" if what == "data" else "model"
            return (
                f"{what}: the hub has no {kind} {name!r} that this login may read{self._near()}; "
                f"check the name, write: hf auth login (if it is private), or {copy}"
            )
        if status in (401, 403):
            return (
                f"{what}: {name!r} is private and this login may not read it; ask its owner, "
                f"write: hf auth login (with a token that may), or {copy}"
            )
        if status == 404:
            return f"{what}: {name!r} on the hub is incomplete: {first_line(error)}"
        full = next((link for link in _chain(error) if _is_full(link)), None)
        if isinstance(full, OSError):
            return (
                f"{what}: {name!r} cannot be stored in {_cache()} ({full.strerror}); make room "
                f"there, or set HF_HOME to another folder"
            )
        return None

    def passing(self, error: Exception) -> tuple[str, bool]:
        """Return the sentence of any other failure, and whether another try at once may help."""
        status, what = _status(error), self.what
        name, copy = self.source.location, f"use a local copy: {self.instead}"
        if status == 429:
            return (
                f"{what}: the hub has had too many requests and refuses {name!r}; wait "
                f"{_seconds_to_wait(error)}, write: hf auth login (for a higher limit), or {copy}"
            ), False
        if status is not None and status >= 500:
            return (
                f"{what}: the hub failed with error {status} {TRIES} times, asked for {name!r}; "
                f"try later, or {copy}"
            ), True
        if _names(error) & {"TimeoutException", "Timeout", "TimeoutError"}:
            return (
                f"{what}: the hub at {_endpoint()} said nothing for {SILENCE:g} seconds, asked "
                f"for {name!r}; check the connection, try later, or {copy}"
            ), False
        if _is_cut(error):
            return (
                f"{what}: the download of {name!r} was cut off {TRIES} times; the same command "
                f"goes on where it was, or {copy}"
            ), True
        return self.unreachable(), False

    def unreachable(self) -> str:
        """Return the sentence of a hub without a connection."""
        from huggingface_hub import constants

        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "no connection"
        return (
            f"{self.what}: {self.source.location!r} is a hub name and the hub cannot be reached "
            f"({why}); check the connection, or use a local copy: {self.instead}"
        )

    @property
    def _page(self) -> str:
        inner = "datasets/" if self.what == "data" else ""
        return f"{_endpoint()}/{inner}{self.source.location}"

    def _near_revisions(self) -> str:
        """Branches and tags that are like the one asked for, as the end of a sentence."""
        name, kind = self.source.location, repo_type(self.what)
        refs = _asked(lambda: hub_api().list_repo_refs(name, repo_type=kind))
        known = [] if refs is None else [item.name for item in (*refs.branches, *refs.tags)]
        return nearest(self.revision, known)

    def _near(self) -> str:
        """Names on the hub that are like the one asked for, as the end of a sentence."""
        owner, _, short = self.source.location.rpartition("/")
        api = hub_api()
        listing = api.list_datasets if self.what == "data" else api.list_models
        found = _asked(lambda: [item.id for item in listing(search=short, limit=50)]) or []
        if owner:
            found += _asked(lambda: [item.id for item in listing(author=owner, limit=200)]) or []
        close = difflib.get_close_matches(self.source.location, found, 3, 0.5) or found[:3]
        return f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else ""


def hub_api() -> HfApi:
    """Return the client of the hub; it reads the token that hf auth login keeps."""
    from huggingface_hub import HfApi, constants

    return HfApi(endpoint=constants.ENDPOINT, library_name="hfcompress")


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def repo_type(what: What) -> str:
    """Return what the hub calls it."""
    return "dataset" if what == "data" else "model"


def _asked(ask: Callable[[], Result]) -> Result | None:
    """What the hub says besides; None where it does not: the first failure is the one to tell."""
    try:
        return ask()
    except Exception:
        return None


def cached_names(what: What) -> str:
    """What the hub's cache has, as the end of a sentence."""
    from huggingface_hub import scan_cache_dir

    kind = repo_type(what)
    found = _asked(lambda: scan_cache_dir(_cache()).repos) or ()
    names = sorted(item.repo_id for item in found if item.repo_type == kind and item.size_on_disk)
    plural = "data sets" if what == "data" else "models"
    if not names:
        return f"the cache ({_cache()}) has no {plural}"
    more = ", ..." if len(names) > 8 else ""
    return f"the cache ({_cache()}) has the {plural} {', '.join(names[:8])}{more}"


def _seconds_to_wait(error: Exception) -> str:
    """What the hub says about the time to wait, as ``55 seconds`` or ``some minutes``."""
    response = next((found for link in _chain(error) if (found := _response(link))), None)
    headers = getattr(response, "headers", {})
    told = re.search(r"\bt=(\d+)", headers.get("ratelimit", "")) or re.fullmatch(
        r"(\d+)", headers.get("retry-after", "")
    )
    return f"{told[1]} seconds" if told else "some minutes"


_HUB_ERRORS = {
    "RepositoryNotFoundError", "RevisionNotFoundError", "ConnectionError", "ConnectError",
    "TimeoutException", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "HfHubHTTPError",
    "DatasetNotFoundError", "NetworkError", "RemoteProtocolError", "ProxyError",
}  # fmt: skip


def of_the_hub(error: BaseException) -> bool:
    """Whether an error is one of the hub's clients, rather than of what reads the files."""
    if isinstance(error, HfcompressError):
        return False
    return bool(_names(error) & _HUB_ERRORS) or _is_cut(error) or any(map(_is_full, _chain(error)))


def _names(error: BaseException) -> set[str]:
    """Names of the classes of an error, of its causes and of their bases."""
    return {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error or one of its causes came with."""
    found = (getattr(_response(link), "status_code", None) for link in _chain(error))
    return next((status for status in found if isinstance(status, int)), None)


def _response(error: BaseException) -> object:
    return getattr(error, "response", None)


def _is_cut(error: BaseException) -> bool:
    """Whether a download ended before its last byte."""
    names = {"RemoteProtocolError", "ReadError", "ProtocolError"}
    return bool(_names(error) & names) or "Consistency check failed" in str(error)


def _is_full(error: BaseException) -> bool:
    codes = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)
    return isinstance(error, OSError) and error.errno in codes


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def upload_failure(name: str, error: Exception) -> str:
    """Return the sentence of an upload that failed."""
    status = _status(error)
    if status == 401:
        return "push: the hub does not accept your token; write: hf auth login"
    if status in (403, 404):
        return (
            f"push: this login may not write to {name!r}; write: hf auth login (with a token that "
            f"may write), or give a name in your own account"
        )
    if status == 429:
        return f"push: the hub has had too many requests; wait {_seconds_to_wait(error)}"
    if status is not None and status >= 500:
        return f"push: the hub failed with error {status}; the same command tries again"
    return f"push: the hub at {_endpoint()} cannot be reached; check the connection"
