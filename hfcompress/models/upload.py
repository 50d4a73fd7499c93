"""``push``: a saved model's folder -> a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from hfcompress.errors import OutputError, SourceError
from hfcompress.models.hub import resolve
from hfcompress.models.hub_failures import hub_api, of_the_hub, upload_failure


def push(folder: str | Path, name: str, private: bool | None = None) -> str:
    """Upload the folder of a saved model, of any kind, and return its address on the hub.

    Args:
        folder: as ``save_pretrained``, `save_compressed` or ``quantize(...).save`` left it.
        name: on the hub, ``ORG/NAME``, or ``NAME`` in your own account; made if it is not there.
        private: who may read a new repository; your account's default where None.

    Raises:
        SourceError: not a hub name, no login, one that may not write there, or no answer.
        OutputError: not the folder of a model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise OutputError(
            f"{str(folder)!r} is not the folder of a saved model: it has no config.json; give one "
            f"that save_pretrained, save_compressed or quantize(...).save wrote"
        )
    if resolve(f"hf://{name}", "model").revision is not None:
        raise SourceError(f"push: {name!r} names a revision; write ORG/NAME alone")
    from huggingface_hub import get_token

    if get_token() is None:
        raise SourceError("push: nobody is logged in to the hub; write: hf auth login")
    api = hub_api()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Upload with hfcompress",
            ignore_patterns=[".*", "**/.*"],
        )  # fmt: skip
    except Exception as error:
        if not of_the_hub(error):
            raise
        raise SourceError(upload_failure(name, error)) from None
    return str(made)
