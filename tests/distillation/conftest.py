import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _frozen_libraries() -> Iterator[None]:
    """Every training of a Trainer collects garbage; the libraries' own objects are none.

    Looking at them each time takes longer than the training of a tiny model.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
