"""Image data sets: IDX files, tables of pixels, folders, saved arrays."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

from hfcompress.data.config import DataConfig
from hfcompress.data.image_batches import array_chunks, array_dataset
from hfcompress.data.load import Examples, fingerprint, load_examples
from hfcompress.errors import DataError, SourceError


def load(path: Path | str, need_train: bool = False, **fields: Any) -> Examples:
    return load_examples(DataConfig(path=str(path), **fields), "image", need_train)


def idx(array: np.ndarray[Any, Any]) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    body: bytes = array.astype(np.uint8).tobytes()
    return head + body


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 4), np.uint8)
LABELS = np.arange(12) % 10


def write_idx(folder: Path, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for side, rows in (("train", slice(0, 12)), ("t10k", slice(0, 11))):
        for what, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            data, name = idx(array[rows]), f"{side}-{what}-ubyte"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_idx_folder(packed: bool, tmp_path: Path) -> None:
    found = load(write_idx(tmp_path / "digits", packed), need_train=True, eval="test")
    assert found.train is not None
    assert (len(found.train), len(found.eval)) == (12, 11)
    assert found.labels == [str(digit) for digit in range(10)]
    assert found.eval["label"] == LABELS[:11].tolist()
    np.testing.assert_array_equal(np.concatenate([*array_chunks(found.train, "image")]), IMAGES)


def test_idx_classes_have_names_where_they_are_known(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "fashion-mnist")
    assert load(folder, eval="test").labels[:2] == ["T-shirt/top", "Trouser"]
    chosen = load(folder, eval="test", labels=["Coat", "Bag"])
    assert chosen.labels == ["Coat", "Bag"]
    np.testing.assert_array_equal(next(array_chunks(chosen.eval, "image")), IMAGES[[4, 8]])


def test_one_side_of_idx_files(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "digits")
    assert len(load(folder / "t10k-images-idx3-ubyte.gz").eval) == 11


def test_the_split_that_idx_folders_have_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no split 'validation'.*known are: test, train"):
        load(write_idx(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(idx(IMAGES), mtime=0)[:60],
            "cut short or damaged",
        ),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(idx(IMAGES)[:-9], mtime=0),
            "says 12x5x4 and holds",
        ),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"text", mtime=0), "is not an IDX file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x0d\3", mtime=0), "values of type 13"),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(LABELS[:9]), mtime=0),
            "9 labels; give files that",
        ),
        ("train-labels-idx1-ubyte.gz", None, "without its labels"),
    ],
)
def test_idx_files_that_cannot_be_used(
    name: str, data: bytes | None, message: str, tmp_path: Path
) -> None:
    folder = write_idx(tmp_path)
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        load(folder, need_train=True, eval="test")
    assert name in str(caught.value) or data is None


def test_scikit_learns_digits() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    found = load("pkg://sklearn/datasets/data/digits.csv.gz")
    truth = load_digits()
    assert found.labels == [str(digit) for digit in range(10)]
    assert found.eval["label"] == truth.target.tolist()
    pixels = np.concatenate([*array_chunks(found.eval, "image")])
    np.testing.assert_array_equal(pixels, np.rint(truth.images * 255 / 16))
    assert any("up to 16, which is read as white" in note for note in found.notes)


def test_pixel_table_with_a_header_and_colours(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (4, 3, 3, 3))
    head = ["label", *(f"pixel{place}" for place in range(27))]
    lines = [",".join(map(str, [row % 2, *images[row].ravel()])) for row in range(4)]
    path = tmp_path / "train.csv"
    path.write_text("\n".join([",".join(head), *lines]))
    found = load(path)
    assert found.eval["label"] == [0, 1, 0, 1]
    np.testing.assert_array_equal(next(array_chunks(found.eval, "image")), images)
    with pytest.raises(DataError, match="no column 'lable'; did you mean 'label'"):
        load(path, label="lable")


def make_folder(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (index, place, 0)).save(folder / name / f"{index}.png")
    return folder


def test_image_folder_with_splits(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "test")
    found = load(tmp_path, need_train=True, eval="test")
    assert found.train is not None
    assert (len(found.train), len(found.eval), found.labels) == (6, 6, ["cat", "dog"])


def test_a_folder_with_one_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has one class only \(cat\)"):
        load(make_folder(tmp_path, ("cat",)))


def test_a_class_without_an_image(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    (tmp_path / "train" / "horse").mkdir()
    (tmp_path / "train" / "horse" / "readme.txt").write_text("later")
    with pytest.raises(DataError, match=r"class folder 'train/horse' of .* has no image"):
        load(tmp_path / "train" / "..")
    shutil.rmtree(tmp_path / "train" / "horse")
    (tmp_path / "train" / ".cache").mkdir()  # nobody means this as a class
    assert load(tmp_path).labels == ["cat", "dog"]


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(SourceError, match="has no image"):
        load(tmp_path)


def test_saved_data_sets_of_arrays_and_lists(tmp_path: Path) -> None:
    labels = ClassLabel(names=["no", "yes"])
    values = {"img": IMAGES[:4].tolist(), "label": [0, 1, 0, 1]}
    for kind in (Array2D((5, 4), "uint8"), List(List(Value("int64")))):
        rows = Dataset.from_dict(values, Features({"img": kind, "label": labels}))
        rows.save_to_disk(tmp_path / type(kind).__name__)
        found = load(tmp_path / type(kind).__name__)
        assert (found.columns, found.labels) == (("img",), ["no", "yes"])
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "both")
    assert len(load(tmp_path / "both", eval="test").eval) == 4


def test_fingerprint_of_arrays_is_content() -> None:
    def digits(images: Any, labels: list[int]) -> str:
        return fingerprint(array_dataset(images, labels, None), ("image",))

    first = digits(IMAGES, LABELS.tolist())
    assert first == digits(IMAGES.copy(), LABELS.tolist())
    other = IMAGES.copy()
    other[3, 2, 1] ^= 1
    assert digits(other, LABELS.tolist()) != first
    assert digits(IMAGES, [1, *LABELS.tolist()[1:]]) != first
    assert digits(IMAGES.reshape(12, 4, 5), LABELS.tolist()) != first


def test_chosen_rows_of_arrays() -> None:
    rows = array_dataset(IMAGES, LABELS.tolist(), None).select([7, 2, 2, 11])
    np.testing.assert_array_equal(next(array_chunks(rows, "image")), IMAGES[[7, 2, 2, 11]])


def make_images(folder: Path, names: list[str]) -> Path:
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), place).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.png", "dog/1.png", "x.png"], "are not all in class folders at one depth"),
        (["a/cat/1.png", "a/dog/1.png", "b/1.png"], "are not all in class folders at one depth"),
        (["train/1.png", "val/1.png"], r"have no class folders; .* own: train/CLASS/"),
    ],
)
def test_images_without_class_folders(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(make_images(tmp_path, names))


def test_other_files_of_class_folders_are_counted(tmp_path: Path) -> None:
    make_images(tmp_path, ["cat/1.png", "dog/1.PNG", "dog/2.jpg"])
    for name in ("cat/1.heic", "dog/notes.docx", "dog/.DS_Store", "dog/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    found = load(tmp_path)
    assert len(found.eval) == 3
    assert found.notes == ("2 files are not images and are left out: cat/1.heic, dog/notes.docx",)
