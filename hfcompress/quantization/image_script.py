"""``example.py`` of a folder of a model of images: imports only the engine, and `pillow`."""

from __future__ import annotations

from hfcompress.data.levels import eight_bits
from hfcompress.quantization.example_script import ENGINES, source_of
from hfcompress.quantization.pixels import make_pixels, open_upright
from hfcompress.tasks.outputs import OutputKind, label_scores, pixel_classes

_SCRIPT = '''\
"""{title} with this folder: python example.py photo.jpg another.png

Needs: pip install {packages}
"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}

FOLDER = Path(__file__).parent


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


{functions}

{run}

def main(paths):
    manifest, labels = read("hfcompress.json"), read("config.json")["id2label"]
{answer}

if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit("give image files: python example.py photo.jpg"))
'''
_LABELS = """\
    pixels = make_pixels([open_upright(path) for path in paths], manifest["image"])
    logits = np.asarray(run({"pixel_values": pixels}))
    for path, row in zip(paths, label_scores(logits, manifest["output"])):
        print(f"{labels[str(row.argmax())]} {row.max():.4f} {path}")
"""
_SEGMENTS = """\
    images = [open_upright(path) for path in paths]
    logits = np.asarray(run({"pixel_values": make_pixels(images, manifest["image"])}))
    for path, image, row in zip(paths, images, logits):
        classes = pixel_classes(row, image.height, image.width)  # the mask
        for number in np.unique(classes):
            print(f"{labels[str(number)]} {(classes == number).mean():.4f} {path}")
"""


def image_script(backend: str, kind: OutputKind = "classification") -> str:
    """Return the text of ``example.py`` of a model that reads image files: it prints a label of
    each and its score or, of pixels, each label and its share of the image.

    Args:
        backend: the engine that it uses.
        kind: what the logits mean.
    """
    packages, imports, run = ENGINES[backend]
    pixels = kind == "pixels"
    head = "SemanticSegmentation" if pixels else "ImageClassification"
    imports, run = (text.replace("SequenceClassification", head) for text in (imports, run))
    functions = (eight_bits, open_upright, make_pixels, pixel_classes if pixels else label_scores)
    return _SCRIPT.format(
        title="Segment images" if pixels else "Classify images",
        packages=f"{packages} numpy pillow",
        imports=imports,
        functions="\n\n".join(source_of(function) for function in functions),
        run=run,
        answer=_SEGMENTS if pixels else _LABELS,
    )
