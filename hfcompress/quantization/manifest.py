"""``hfcompress.json``: what a folder of a quantized model says of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hfcompress.checkpoint.digests import has_digests
from hfcompress.config import nearest
from hfcompress.errors import ModelError
from hfcompress.models.checkpoint_checks import check_files
from hfcompress.quantization.config import MODES
from hfcompress.tasks.outputs import OutputKind, output_kind
from hfcompress.utils import file_digest, has_digest

MANIFEST = "hfcompress.json"
FORMAT = 1
Graph = Literal["onnx/model.onnx", "openvino/openvino_model.xml"]
GRAPHS: dict[str, Graph] = {
    "onnxruntime": "onnx/model.onnx",
    "openvino": "openvino/openvino_model.xml",
}
"""Where sentence-transformers looks for a graph, by backend."""


class TextSettings(TypedDict):
    """What `tokenizers` needs besides ``tokenizer.json``.

    ``inputs`` are the names that the tokenizer gives. Folders of earlier versions lack it,
    ``truncation_side`` (right), ``pad_type_id`` (0) and ``split_special_tokens`` (false).
    ``mask_token`` is that of models that find the token behind a mask.
    """

    max_length: int
    pad_id: int
    pad_token: str
    padding_side: Literal["left", "right"]
    truncation_side: NotRequired[Literal["left", "right"]]
    pad_type_id: NotRequired[int]
    split_special_tokens: NotRequired[bool]
    inputs: NotRequired[list[str]]
    mask_token: NotRequired[str]


class ImageSettings(TypedDict):
    """Arguments of `make_pixels`: the steps of an image processor as numbers.

    ``resize`` is [width, height], the length of the shorter side, or None; ``crop`` is [width,
    height] around the centre, or None. A value of 0 to 255 becomes value * scale + shift.
    """

    channels: int
    resample: int
    scale: list[float]
    shift: list[float]
    resize: int | list[int] | None
    crop: list[int] | None


class ModuleReport(TypedDict):
    """A `ModuleCoverage` as plain data."""

    name: str
    kind: str
    bytes: int
    integer_bytes: int
    macs: int
    quantized: bool
    why: str


class CoverageReport(TypedDict):
    """A `Coverage` as plain data; ``left_alone`` counts the modules in fp32 by reason."""

    share_of_bytes: float
    share_of_macs: float
    quantized_modules: int
    left_alone: dict[str, int]
    modules: NotRequired[list[ModuleReport]]
    total_macs: NotRequired[int]


class LossReport(TypedDict):
    """A `Loss` as plain data."""

    kl: float
    changed: float


class SensitivityReport(LossReport):
    """A `Sensitivity` as plain data."""

    name: str
    bytes: int


class MixedPrecisionReport(TypedDict):
    """A `MixedReport` as plain data; ``foretold`` is the predicted loss."""

    kept: list[SensitivityReport]
    kept_bytes: int
    uniform: LossReport
    foretold: LossReport
    measured: LossReport
    holds: bool


class DistanceReport(TypedDict):
    """A `Distance` as plain data."""

    error: float
    changed: float
    agreement: float
    rows: int
    calibration: bool


class QuantizationReport(CoverageReport):
    """A `QuantizedModel` as plain data; a manifest and a row leave ``modules`` out, and a row
    ``total_macs`` (of one example of 32 tokens, or of one image)."""

    backend: str
    mode: str
    bytes: int
    notes: list[str]
    mixed: NotRequired[MixedPrecisionReport]
    distance: NotRequired[DistanceReport]


class QuantizationFields(TypedDict):
    """The fields of a `QuantizationConfig` that a folder's readers use; the file has all."""

    floats: NotRequired[str]
    bits: NotRequired[int]


class Manifest(TypedDict):
    """The whole file.

    ``output`` says what the logits mean; ``digests`` are the SHA-256 of the folder's files, and of
    the other fields of this one under its own name. Earlier versions lack both. ``graph`` is the
    main file of a model that sentence-transformers can open; others have it in the folder.
    """

    format: int
    backend: str
    inputs: list[str]
    model: str
    quantization: QuantizationFields
    done: QuantizationReport
    output: NotRequired[OutputKind]
    graph: NotRequired[Graph]
    text: NotRequired[TextSettings]
    image: NotRequired[ImageSettings]
    digests: NotRequired[dict[str, str]]


class _Done(TypedDict):
    backend: str
    mode: str
    bytes: int


class _Read(TypedDict):
    """The fields that loading reads; other ones may be missing in folders of earlier versions."""

    backend: str
    inputs: list[str]
    quantization: QuantizationFields
    done: _Done
    output: NotRequired[OutputKind]
    graph: NotRequired[Graph]
    text: NotRequired[TextSettings]
    image: NotRequired[ImageSettings]
    digests: NotRequired[dict[str, str]]


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        ModelError: not a folder of a quantized model, one that a later version wrote, or a record
            with missing or wrong fields.
    """
    if directory.is_dir():
        check_files(directory, f"the folder {str(directory)!r}")
    try:
        manifest: Manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        version, _ = manifest["format"], manifest["backend"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ModelError(
            f"{str(directory)!r} is not a folder of a quantized model: it has no readable "
            f"{MANIFEST}; give a folder that hfcompress's quantize(...).save wrote"
        ) from None
    unknown = sorted(manifest.keys() - Manifest.__annotations__.keys())
    if version == FORMAT and unknown:
        raise ModelError(
            f"{directory / MANIFEST} has the unknown field {unknown[0]!r}; it is damaged, save the "
            f"model again"
        )
    if version != FORMAT:
        raise ModelError(f"{directory / MANIFEST} has the format {version}; upgrade hfcompress")
    try:
        TypeAdapter(_Read).validate_python(manifest, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"{directory / MANIFEST} is damaged: {place}: {first['msg'].lower()}; save the model "
            f"again"
        ) from None
    backend = manifest["backend"]
    if backend not in MODES:
        raise ModelError(f"{directory}: unknown backend {backend!r}{nearest(backend, MODES)}")
    return manifest


def padding_id(manifest: Manifest) -> int:
    """Return the id that pads a folder's texts; 0 where it takes none."""
    return manifest["text"]["pad_id"] if "text" in manifest else 0


def graph_path(directory: Path, usual: str) -> Path:
    """Return the main file of a folder's graph.

    Args:
        directory: the folder.
        usual: its name where the manifest does not say another one.

    Raises:
        ModelError: as `read_manifest`.
    """
    return directory / read_manifest(directory).get("graph", usual)


_MAY_CHANGE = ("README.md", "example.py", MANIFEST)
"""Files of a folder that are read by people, or have a digest of their own."""


def file_digests(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Return the digests of a folder's files and of its manifest.

    Weights with a record of their own are left out: their ``config.json`` has their digests.

    Args:
        directory: with all files but the manifest.
        manifest: that will be written there.
    """
    files = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    own = {path.name for path in directory.glob("*.safetensors")} if has_digests(directory) else ()
    found = {
        name: file_digest(path)
        for name, path in files.items()
        if name not in _MAY_CHANGE and name not in own
    }
    return {**found, MANIFEST: _fields_digest(manifest)}


DESCRIPTIONS = (MANIFEST, "config.json")
"""The files of a folder of which loading says more exactly what is wrong than that they differ."""


def check_digests(directory: Path, manifest: Manifest, descriptions: bool) -> None:
    """Refuse a folder whose files differ from those that were saved.

    Args:
        directory: the folder.
        manifest: of the folder; without digests nothing is checked.
        descriptions: check `DESCRIPTIONS`, or else all other files.

    Raises:
        ModelError: a file differs or is missing.
    """
    for name, digest in manifest.get("digests", {}).items():
        if (name in DESCRIPTIONS) is not descriptions:
            continue
        path = directory / name
        if name == MANIFEST:
            same = _fields_digest(manifest) == digest
        else:
            inside = path.is_file() and ".." not in Path(name).parts
            same = inside and has_digest(path, digest)
        if not same:
            raise ModelError(
                f"{path} is damaged or mixed: it differs from what was saved; copy it again or, if "
                f"you changed it on purpose, remove its line under 'digests' from {MANIFEST}"
            )


def _fields_digest(manifest: Manifest) -> str:
    fields = {name: value for name, value in manifest.items() if name != "digests"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_output_kind(directory: Path, manifest: Manifest, labels: int) -> OutputKind:
    """Return what the logits of a folder's model mean.

    Args:
        directory: the folder; its ``config.json`` says it where the manifest does not.
        manifest: of the folder.
        labels: number of labels.

    Raises:
        ModelError: ``config.json`` names an unknown problem type.
    """
    if "output" in manifest:
        return manifest["output"]
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    try:
        return output_kind(config.get("problem_type"), labels)
    except ValueError as error:
        raise ModelError(f"{directory / 'config.json'}: {error}") from None


def read_labels(directory: Path) -> list[str]:
    """Read the label names of a folder, in order.

    Raises:
        ModelError: ``config.json`` has none.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in config["id2label"].items()}
        return [names[number] for number in range(len(names))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(
            f"{directory / 'config.json'} names no labels; write id2label into it: "
            f'{{"0": "negative", "1": "positive"}}'
        ) from None
