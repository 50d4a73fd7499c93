"""Image folders: one folder for each class, under folders for the splits where there are any."""

from __future__ import annotations

from pathlib import Path

from hfcompress.errors import DataError, SourceError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_NOT_MEANT = ("__MACOSX", "__pycache__")


def check_image_folder(folder: Path, spec: str) -> None:
    """Refuse a folder without images, with a class that has none, or with one class only.

    Raises:
        SourceError: no image anywhere.
        DataError: an empty class, a label that a model would never see; or nothing to tell apart.
    """
    leaves = _leaves(folder)
    empty = [path for path in leaves if not _has_image(path)]
    if not _has_image(folder) and len(empty) == len(leaves):
        raise SourceError(
            f"data: {spec!r} holds no image ({', '.join(IMAGE_SUFFIXES)}) and no data file "
            f"(csv, json, parquet); give a folder with a folder of images for each class"
        )
    if empty:
        name = empty[0].relative_to(folder)
        raise DataError(
            f"data: the class folder {str(name)!r} of {spec!r} holds no image; put images there "
            f"or remove the folder"
        )
    classes = {path.name for path in leaves}
    if len(classes) == 1 and not any(folder.rglob("metadata.*")):
        raise DataError(
            f"data: {spec!r} has one class only ({classes.pop()}); put the images of each class "
            f"into a folder of its own, two classes at least"
        )


def _leaves(folder: Path) -> list[Path]:
    """Folders without folders."""
    inner = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name not in _NOT_MEANT
    ]
    return [leaf for path in inner for leaf in (_leaves(path) or [path])]


def _has_image(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
