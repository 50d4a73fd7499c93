"""Image processors of a teacher and its student, which read the same encoded rows."""

from __future__ import annotations

from hfcompress.data.image_batches import channels_of
from hfcompress.errors import ModelError
from hfcompress.models.loading import ModelConfig

# Settings that decide the pixels that a model reads.
_DECIDES = ("size", "crop_size", "do_resize", "do_center_crop", "do_rescale", "rescale_factor",
            "do_normalize", "image_mean", "image_std")  # fmt: skip


def like_teacher(config: ModelConfig, teacher: object) -> ModelConfig:
    """The student's config, with the teacher's image size, means and channels where it has none.

    Args:
        config: with ``config``; image size, means and channels may be missing.
        teacher: the teacher's image processor.
    """
    fields: dict[str, object] = dict(config.config or {})
    size = image_side(teacher)
    if "image_size" not in fields and config.image_size is None and size is not None:
        config = config.replace(image_size=size)
    fields.setdefault("num_channels", channels_of(teacher))
    found = config.replace(config=fields)
    mean, std = getattr(teacher, "image_mean", None), getattr(teacher, "image_std", None)
    if found.image_mean is None and found.image_std is None and mean:
        found = found.replace(image_mean=tuple(mean), image_std=tuple(std or ()))
    return found


def image_side(processor: object) -> int | None:
    """Side of the square images that a processor makes; None where they are not all square."""
    crop = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = crop or getattr(processor, "size", None) or {}
    height, width = size.get("height"), size.get("width")
    return int(height) if height and height == width else None


def check_same_images(student: str, mine: object, teacher: object) -> None:
    """Check that a student's processor makes the same images as the teacher's.

    Raises:
        ModelError: the first thing in which they differ.
    """
    for name in _DECIDES:
        own, other = (_plain(processor, name) for processor in (mine, teacher))
        if own != other:
            raise ModelError(
                f"the student {student!r} reads images with {name} {own} and the teacher with "
                f"{other}, and the rows are encoded once; give a student whose image processor "
                f"is the teacher's"
            )


def _plain(processor: object, name: str) -> object:
    value = getattr(processor, name, None)
    if name == "crop_size" and not getattr(processor, "do_center_crop", False):
        return None  # not in use
    if name in ("image_mean", "image_std"):
        if not getattr(processor, "do_normalize", False):
            return None
        return [round(float(part), 4) for part in value or ()]
    if name in ("size", "crop_size"):
        wanted = ("height", "width", "shortest_edge", "longest_edge")
        return {key: value[key] for key in wanted if value and value.get(key)}
    return bool(value) if name.startswith("do_") else value
