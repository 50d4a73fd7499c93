"""`read`: a source -> its rows, one `datasets.Dataset` for each split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Features, Image, Value, concatenate_datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hfcompress.config import nearest_of_all
from hfcompress.data.config import IMAGE_COLUMNS, DataConfig
from hfcompress.data.image_formats import is_idx, pixel_table, read_idx, read_pixel_table
from hfcompress.data.tables import find_encoding, table_format
from hfcompress.errors import DataError, SourceError, first_line
from hfcompress.models.download import Commit, from_hub
from hfcompress.models.hub import Source, resolve
from hfcompress.models.loading import Modality

_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet",
            ".txt": "text"}  # fmt: skip
# Usual words in the names of files and folders -> splits.
_SPLIT_NAMES = {"train": "train", "training": "train", "dev": "validation", "valid": "validation",
                "validation": "validation", "val": "validation", "eval": "validation",
                "test": "test", "testing": "test"}  # fmt: skip
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip", ".zst")


def read(config: DataConfig, modality: Modality) -> tuple[DatasetDict, tuple[str, ...]]:
    """All rows of a source, one `Dataset` for each split, and notes on what was assumed."""
    source = resolve(config.path, "data")
    if source.path is None:
        load = partial(_read_hub, config)
        instead = "--set data.path=FILE_OR_FOLDER"
        return from_hub(source, "data", instead, load, config.revision), ()
    path = source.path
    if is_idx(path):
        return read_idx(path, source.spec), ()
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path)), ()
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return DatasetDict(train=datasets.load_from_disk(str(path))), ()
    if path.is_dir() and modality == "image" and not _data_files(path):
        return _read_image_folder(path, source)
    if modality == "image" and _format(path) == "csv" and pixel_table(path):
        label = config.label if config.label is None or isinstance(config.label, str) else None
        return read_pixel_table(path, source.spec, label)
    return _read_files(source, path, config, modality)


def _read_hub(config: DataConfig, commit: Commit | None) -> DatasetDict:
    """All splits of one commit of a data set on the hub.

    Raises:
        DataError: no such configuration, or several and none is named.
    """
    assert commit is not None  # the source is a hub name
    name = commit.name
    # Without a network datasets finds what it has prepared by any revision.
    revision = commit.revision if commit.files else config.revision
    try:
        builder = datasets.load_dataset_builder(name, config.name, revision=revision)
    except ValueError as error:
        known = datasets.get_dataset_config_names(name, revision=revision) if commit.files else []
        if not known or config.name in known:
            raise DataError(f"data: {name!r} cannot be read: {first_line(error)}") from None
        if config.name is None:
            raise DataError(
                f"data: {name!r} has several configurations; write one as data.name: "
                f"{', '.join(known)}"
            ) from None
        hint = nearest_of_all(config.name, known)
        raise DataError(f"data.name: {name!r} has no configuration {config.name!r}{hint}") from None
    commit.fetch(_hub_files(builder, commit))
    builder.download_and_prepare()
    loaded: DatasetDict = builder.as_dataset()
    return loaded


def _hub_files(builder: datasets.DatasetBuilder, commit: Commit) -> list[str]:
    """Paths in the repository of the files that a configuration is read from."""
    urls = [str(url) for found in (builder.config.data_files or {}).values() for url in found]
    paths = {url.partition(f"@{commit.revision}/")[2] for url in urls}
    return [path for path in commit.files if path in paths]


def _read_files(
    source: Source, path: Path, config: DataConfig, modality: Modality
) -> tuple[DatasetDict, tuple[str, ...]]:
    """One data file, or a folder of files named after their splits."""
    files = _data_files(path) if path.is_dir() else [path]
    if not files or not _format(files[0]):
        raise SourceError(
            f"data: {config.path!r} has no data file; give a csv, tsv, json, jsonl or parquet "
            f"file (compressed or not), a folder of them, or an image folder"
        )
    kinds = {_format(item) for item in files}
    if len(kinds) > 1:
        raise SourceError(
            f"data: {config.path!r} mixes {' and '.join(sorted(k for k in kinds if k))} files; "
            f"give one of the files"
        )
    found, notes = DatasetDict(), list[str]()
    for item in files:
        split = split_name(item) if len(files) > 1 else "train"
        rows, more = _read_file(item, source, config, modality)
        notes += more
        found[split] = concatenate_datasets([found[split], rows]) if split in found else rows
    return found, tuple(notes)


def _read_file(
    file: Path, source: Source, config: DataConfig, modality: Modality
) -> tuple[Dataset, tuple[str, ...]]:
    """The rows of one file, all columns of a delimited one as text."""
    kind, notes = str(_format(file)), tuple[str, ...]()
    options: dict[str, object] = {}
    if kind == "csv":
        table = table_format(file, config, modality)
        notes = table.notes
        options = {
            "delimiter": table.delimiter,
            "quoting": table.quoting,
            "encoding": table.encoding,
            "names": list(table.columns),
            "header": 0 if table.has_header else None,
            "features": Features({name: Value("string") for name in table.columns}),
            # "NA", "None" and "null" are words; only an empty field is missing.
            "keep_default_na": False,
            "na_values": [""],
        }
    elif kind in ("json", "text"):
        encoding, notes = find_encoding(file)
        options = {"encoding": encoding}
    rows = _load(kind, source, data_files=str(file), **options)["train"]
    if modality == "image":
        rows = _with_image_paths(rows, file.parent, config)
    return rows, notes


def _with_image_paths(rows: Dataset, folder: Path, config: DataConfig) -> Dataset:
    """The rows with a column of images in the place of one of paths relative to the file."""
    name = config.image or next((item for item in IMAGE_COLUMNS if item in rows.features), None)
    if name is None or rows.features.get(name) not in (Value("string"), Value("large_string")):
        return rows
    paths = [None if path is None else str(folder / path) for path in rows[name][:]]
    order = rows.column_names
    rows = rows.remove_columns(name).add_column(name, paths)
    return rows.cast_column(name, Image(decode=False)).select_columns(order)


def _data_files(folder: Path) -> list[Path]:
    """The files of a folder that hold rows.

    A text file in a folder is a read-me; one of texts is given by its own name. A table named
    metadata belongs to the images beside it.
    """
    return sorted(
        item
        for item in folder.iterdir()
        if _format(item) not in (None, "text") and not item.name.startswith("metadata.")
    )


def _load(kind: str, source: Source, **options: object) -> DatasetDict:
    try:
        # The options hold the revision that the data config names.
        loaded: DatasetDict = datasets.load_dataset(kind, **options)  # nosec B615
    except Exception as error:  # the readers raise many kinds; all mean a file that does not parse
        if "corresponds to no data" in str(error):
            raise DataError(f"data: {source.spec!r} has no usable row") from None
        cause = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"data: {source.spec!r} cannot be read as {kind}: {cause[0]}") from error
    return loaded


def _format(path: Path) -> str | None:
    """``csv``, ``json`` or ``parquet``, from the name, compression aside."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSIONS]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def split_name(path: Path) -> str:
    """Return the split that a file or folder is named after; its first word where none is."""
    words = path.name.split(".")[0].lower().replace("-", "_").split("_")
    return next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), words[0])


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_NOT_MEANT = ("__MACOSX", "__pycache__")
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")


def _read_image_folder(path: Path, source: Source) -> tuple[DatasetDict, tuple[str, ...]]:
    """The images of a folder, each labelled by its own folder or by a table named metadata.

    Raises:
        SourceError: as `check_image_folder`.
        DataError: as `check_image_folder`; or images at several depths, so that no folder names
            their classes.
    """
    check_image_folder(path, source.spec)
    found = _load("imagefolder", source, data_dir=str(path))
    described = any(path.rglob("metadata.*"))
    if not described and any("label" not in rows.column_names for rows in found.values()):
        raise DataError(
            f"data: the images of {source.spec!r} are not all in class folders at one depth; put "
            f"the images of each class into a folder of its own: CLASS/*, or train/CLASS/* and "
            f"validation/CLASS/*"
        )
    known = {suffix.lower() for suffix in ImageFolder.EXTENSIONS}
    others = sorted(
        item
        for leaf in _leaves(path)
        for item in leaf.iterdir()
        if item.is_file() and item.suffix.lower() not in known and item.name not in _SYSTEM_FILES
        and not item.name.startswith((".", "metadata."))
    )  # fmt: skip
    if not others:
        return found, ()
    shown = ", ".join(str(item.relative_to(path)) for item in others[:5])
    more = ", ..." if len(others) > 5 else ""
    return found, (f"{len(others):,} files are not images and are left out: {shown}{more}",)


def check_image_folder(folder: Path, spec: str) -> None:
    """Refuse a folder without images, with a class that has none, or with one class only.

    Raises:
        SourceError: no image anywhere.
        DataError: a class without images, or one class only.
    """
    leaves = _leaves(folder)
    empty = [path for path in leaves if not _has_image(path)]
    if not _has_image(folder) and len(empty) == len(leaves):
        raise SourceError(
            f"data: {spec!r} has no image ({', '.join(IMAGE_SUFFIXES)}) and no data file "
            f"(csv, json, parquet); give a folder with a folder of images for each class"
        )
    if empty:
        name = empty[0].relative_to(folder)
        raise DataError(
            f"data: the class folder {str(name)!r} of {spec!r} has no image; put images there "
            f"or remove the folder"
        )
    classes = {path.name for path in leaves}
    splits = {path.parent for path in leaves} == {folder} and classes <= _SPLIT_NAMES.keys()
    if splits and not any(folder.rglob("metadata.*")):
        raise DataError(
            f"data: the splits of {spec!r} have no class folders; put the images of each class "
            f"into a folder of its own: {sorted(classes)[0]}/CLASS/*"
        )
    if len(classes) == 1 and not any(folder.rglob("metadata.*")):
        raise DataError(
            f"data: {spec!r} has one class only ({classes.pop()}); put the images of each class "
            f"into a folder of its own, two classes at least"
        )


def _leaves(folder: Path) -> list[Path]:
    """The innermost folders."""
    inner = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name not in _NOT_MEANT
    ]
    return [leaf for path in inner for leaf in (_leaves(path) or [path])]


def _has_image(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
