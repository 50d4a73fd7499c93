"""Every failure of the hub has its own sentence; what the cache has is used without the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from hfcompress.data.config import DataConfig
from hfcompress.data.read import read
from hfcompress.errors import DataError, SourceError
from hfcompress.models import download, hub_failures
from hfcompress.models.download import from_hub, hub_reachable, showing_downloads
from hfcompress.models.hub import resolve
from hfcompress.models.loading import LoadedModel, ModelConfig, load_model
from hfcompress.tasks.registry import find_task, task_of_checkpoint
from hfcompress.utils import Progress
from tests.hub_server import Fault, HubServer, folder_files, serving

TASK = find_task("text-classification")
NAME = "org/tiny-bert"
SECRET = "hf_" + "s" * 20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(hub_failures, "SILENCE", 0.3)
    monkeypatch.setattr(download, "SILENCE", 0.3)
    with serving(monkeypatch, tmp_path / "hf") as server:
        yield server


@pytest.fixture
def model(hub: HubServer, model_folder: Path) -> HubServer:
    hub.add("model", NAME, folder_files(model_folder))
    return hub


def load(name: str = NAME, revision: str | None = None) -> LoadedModel:
    return load_model(ModelConfig(path=name, revision=revision), TASK)


def rows(text: str = "good") -> bytes:
    return "\n".join(["sentence,label", *[f"{text} {i},{i % 2}" for i in range(8)]]).encode()


CARD = b"""---
configs:
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train.csv}
  - {split: validation, path: sst2/dev.csv}
- config_name: cola
  data_files:
  - {split: train, path: cola/train.csv}
---
"""


def glue(hub: HubServer, fault: Fault | None = None) -> None:
    files = {"README.md": CARD, "sst2/train.csv": rows(), "sst2/dev.csv": rows("bad")}
    hub.add("dataset", "nyu/glue", {**files, "cola/train.csv": rows("odd")}, fault)


MODEL_SENTENCES: list[tuple[Fault, str]] = [
    ("gated", "'org/x' is gated; accept its conditions at {url}/org/x, write: hf auth login"),
    ("forbidden", "'org/x' is private and this login may not read it; ask its owner"),
    ("token", "the hub does not accept your token; write: hf auth login"),
    ("rate", "the hub has had too many requests and refuses 'org/x'; wait some minutes"),
    ("server", "the hub failed with error 500 3 times, asked for 'org/x'; try later"),
    ("silent", "the hub at {url} said nothing for 0.3 seconds, asked for 'org/x'"),
    ("cut", "the download of 'org/x' was cut off 3 times; the same command goes on where it was"),
]


@pytest.mark.parametrize(("fault", "sentence"), MODEL_SENTENCES)
def test_each_fault_of_a_model_has_its_sentence(
    fault: Fault, sentence: str, hub: HubServer, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.add("model", "org/x", folder_files(model_folder), fault)
    with pytest.raises(SourceError) as caught:
        load("org/x")
    text = str(caught.value)
    assert text.startswith(f"model: {sentence.format(url=hub.url)}")
    assert "--set model=FOLDER" in text or fault == "token"
    assert "\n" not in text
    assert SECRET not in text


@pytest.mark.parametrize(("fault", "sentence"), MODEL_SENTENCES)
def test_each_fault_of_a_data_set_has_its_sentence(
    fault: Fault, sentence: str, hub: HubServer
) -> None:
    hub.add("dataset", "org/x", {"train.csv": rows() * 100}, fault)
    with pytest.raises(SourceError) as caught:
        read(DataConfig(path="org/x"), "text")
    expected = sentence.format(url=hub.url).replace(f"{hub.url}/org", f"{hub.url}/datasets/org")
    assert str(caught.value).startswith(f"data: {expected}")


def test_each_fault_of_a_config_has_its_sentence(hub: HubServer, model_folder: Path) -> None:
    for fault, sentence in MODEL_SENTENCES[:-1]:
        hub.add("model", "org/x", folder_files(model_folder), fault)
        with pytest.raises(SourceError) as caught:
            task_of_checkpoint("org/x")
        assert str(caught.value).startswith(f"model: {sentence.format(url=hub.url)}")


def test_a_misspelt_name_is_answered_with_near_ones(model: HubServer) -> None:
    glue(model)
    with pytest.raises(SourceError, match=r"no model 'org/tiny-bret'.*mean org/tiny-bert\?; check"):
        load("org/tiny-bret")
    with pytest.raises(SourceError, match=r"no data set 'nyu/glu' .*; did you mean nyu/glue\?"):
        read(DataConfig(path="nyu/glu"), "text")
    with pytest.raises(SourceError, match="no model 'zzz/qqq' that this login may read; check"):
        load("zzz/qqq")


def test_a_revision_is_loaded_or_refused_with_the_known_ones(
    model: HubServer, model_folder: Path
) -> None:
    (model_folder / "note.txt").write_text("second")
    repository = model.repositories["model", NAME]
    repository.revisions["v1.0"] = folder_files(model_folder)
    first, second = load(), load(f"hf://{NAME}@v1.0")
    assert first.fingerprint != second.fingerprint
    assert load(revision="v1.0").fingerprint == second.fingerprint
    with pytest.raises(SourceError, match=r"has no revision 'v1.1'; did you mean 'v1.0'\?"):
        load(f"{NAME}@v1.1")
    with pytest.raises(SourceError, match=r"has no revision 'qq'; known are: main, v1\.0"):
        load(revision="qq")
    with pytest.raises(SourceError, match="keep one of them"):
        load(f"{NAME}@v1.0", revision="main")


def test_a_configuration_that_is_not_there_is_refused_with_the_known_ones(hub: HubServer) -> None:
    glue(hub)
    found, _ = read(DataConfig(path="glue", name="sst2"), "text")  # the old name of the data set
    assert {name: len(rows) for name, rows in found.items()} == {"train": 8, "validation": 8}
    with pytest.raises(DataError, match=r"'nyu/glue' has no configuration 'sst3'; did you mean "
                                        r"'sst2'\? Known are: cola, sst2"):  # fmt: skip
        read(DataConfig(path="nyu/glue", name="sst3"), "text")
    with pytest.raises(DataError, match=r"several configurations; write one as data\.name: sst2, "):
        read(DataConfig(path="nyu/glue"), "text")


def test_a_split_that_is_not_there_is_refused_with_the_known_ones(hub: HubServer) -> None:
    glue(hub)
    message = r"eval: there is no split 'validaton'.*'validation'\? Known are: train, validation"
    with pytest.raises(DataError, match=message):
        TASK.load(DataConfig(path="nyu/glue", name="sst2", eval="validaton"), True)


def test_a_cut_download_goes_on(hub: HubServer, model_folder: Path) -> None:
    hub.add("model", NAME, folder_files(model_folder), "cut-once")
    load()
    asked = [request for request in hub.asked if request.endswith("model.safetensors")]
    assert hub.asked[next(item for item in asked if item.startswith("GET"))] == 2


def test_a_busy_hub_is_asked_again(hub: HubServer, model_folder: Path) -> None:
    hub.add("model", NAME, folder_files(model_folder), "busy")
    assert load().fingerprint.startswith(f"{NAME}@")


class _Told(Progress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.counts: list[tuple[int, int]] = []
        self.notes: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def work(self, done: int, total: int) -> None:
        self.counts.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_download_has_a_bar_of_its_bytes(model: HubServer) -> None:
    glue(model)
    told = _Told()
    with showing_downloads(told):
        load()
        read(DataConfig(path="nyu/glue", name="sst2"), "text")
    assert told.stages == [f"downloading {NAME}", "downloading nyu/glue"]
    size = len(model.repositories["model", NAME].files["model.safetensors"])
    assert max(told.counts)[0] == max(told.counts)[1] > size
    assert (2 * len(rows()) - 8, 2 * len(rows()) - 8) in told.counts


def test_without_a_network_the_cache_is_read(
    model: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    glue(model)
    before = load()
    found, _ = read(DataConfig(path="nyu/glue", name="sst2"), "text")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    told = _Told()
    with showing_downloads(told):
        assert load().fingerprint == before.fingerprint
        again, _ = read(DataConfig(path="glue", name="sst2"), "text")
        assert again["train"][:] == found["train"][:]
    assert [re.sub(":.*", "", note) for note in told.notes] == [NAME, "glue"]
    with pytest.raises(SourceError) as caught:
        load("org/other")
    assert "the hub cannot be reached (no connection)" in str(caught.value)
    assert str(caught.value).endswith(f"has the models {NAME}")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_a_hub_that_fails_gives_way_to_the_cache(model: HubServer) -> None:
    before = load()
    model.repositories["model", NAME].fault = "server"
    assert load().fingerprint == before.fingerprint


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert not hub_reachable()
    with pytest.raises(SourceError, match=r"\(HF_HUB_OFFLINE is set\).*has no models"):
        load()


@pytest.mark.parametrize(
    ("left_out", "message"),
    [("config.json", "has no config.json"), ("model.safetensors", "has no weights on the hub")],
)
def test_a_repository_that_is_no_model(left_out: str, message: str, model: HubServer) -> None:
    del model.repositories["model", NAME].files[left_out]
    with pytest.raises(SourceError, match=message):
        load()


def test_errors_of_other_kinds_pass_through(tmp_path: Path, hub: HubServer) -> None:
    def fail(error: Exception) -> None:
        raise error

    hub.add("model", NAME, {"config.json": b"{}"})
    with pytest.raises(OSError, match="mine"):
        from_hub(resolve(str(tmp_path), "model"), "model", "x", lambda _: fail(OSError("mine")))
    with pytest.raises(KeyError):
        from_hub(resolve(NAME, "model"), "model", "x", lambda _: fail(KeyError("mine")))


def test_a_full_disk_is_said(hub: HubServer) -> None:
    import errno

    def fill(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.add("model", NAME, {"config.json": b"{}"})
    with pytest.raises(SourceError, match=r"cannot be stored in .* \(No space left on device\)"):
        from_hub(resolve(NAME, "model"), "model", "x", fill)


def test_the_wait_of_a_rate_limit_is_said() -> None:
    refusal = OSError()
    refusal.response = SimpleNamespace(  # type: ignore[attr-defined]
        status_code=429, headers={"ratelimit": '"api";r=0;t=55'}
    )
    source = resolve(NAME, "model")
    sentence, again = hub_failures.Failure(source, "model", "x", "main").passing(refusal)
    assert "wait 55 seconds" in sentence
    assert not again
