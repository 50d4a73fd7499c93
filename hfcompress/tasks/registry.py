"""Tasks by name, by a synonym of it, or by the model that was trained for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfcompress.config import nearest
from hfcompress.errors import ConfigError, ModelError
from hfcompress.models.checkpoint_checks import folder_errors
from hfcompress.models.download import Commit, from_hub
from hfcompress.models.loading import ModelConfig, model_source
from hfcompress.tasks.fill_mask import FILL_MASK
from hfcompress.tasks.image_classification import IMAGE_CLASSIFICATION
from hfcompress.tasks.image_segmentation import IMAGE_SEGMENTATION
from hfcompress.tasks.question_answering import QUESTION_ANSWERING
from hfcompress.tasks.sentence_similarity import SENTENCE_SIMILARITY
from hfcompress.tasks.task import Task
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION
from hfcompress.tasks.text_ranking import TEXT_RANKING
from hfcompress.tasks.token_classification import TOKEN_CLASSIFICATION

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ALL: tuple[Task, ...] = (
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    QUESTION_ANSWERING,
    FILL_MASK,
    IMAGE_CLASSIFICATION,
    IMAGE_SEGMENTATION,
    SENTENCE_SIMILARITY,
    TEXT_RANKING,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}

_OWN_SYNONYMS = {
    "embeddings": SENTENCE_SIMILARITY.name,
    "feature-extraction": SENTENCE_SIMILARITY.name,
    "reranking": TEXT_RANKING.name,
    "cross-encoder": TEXT_RANKING.name,
    "semantic-segmentation": IMAGE_SEGMENTATION.name,
}


def find_task(name: str) -> Task:
    """Return a task by its name, or by a synonym that transformers or optimum knows.

    Raises:
        ConfigError: a task that is not served.
    """
    name = _OWN_SYNONYMS.get(name, name)
    if name in TASKS:
        return TASKS[name]
    from optimum.exporters.tasks import TasksManager
    from transformers.pipelines import TASK_ALIASES

    usual = TasksManager.map_from_synonym(TASK_ALIASES.get(name, name))
    if usual in TASKS:
        return TASKS[usual]
    raise ConfigError(f"task {name!r} is not supported{nearest(name, list(TASKS))}")


def infer_task(config: PreTrainedConfig, model: str) -> Task:
    """Return the task that a checkpoint was saved for.

    Args:
        config: the model's; its ``architectures`` decide.
        model: its name, for the message.

    Raises:
        ModelError: a config that does not say, or a head of another task.
    """
    from hfcompress.models.cross_encoder import is_cross_encoder

    names = tuple(getattr(config, "architectures", None) or ())
    if is_cross_encoder(config):
        return TEXT_RANKING
    found = _task_of_head(names)
    if found is not None:
        return found
    if names and _is_text_encoder(config, names[0]):
        return SENTENCE_SIMILARITY
    if not names:
        raise ModelError(
            f"the config of model {model!r} names no architectures, so its task is unknown; "
            f"save the model with save_pretrained, or name its class there"
        )
    raise ModelError(
        f"model {model!r} is a {names[0]}{_other_task(names[0])}; supported are: {', '.join(TASKS)}"
    )


def task_of_model(model: object) -> Task | None:
    """Return the task that a model in memory answers; None where its class does not say."""
    from hfcompress.models.cross_encoder import is_cross_encoder
    from hfcompress.models.modeling_embedding import EmbeddingModel

    if isinstance(model, EmbeddingModel):
        return SENTENCE_SIMILARITY
    config = getattr(model, "config", None)
    if config is not None and is_cross_encoder(config):
        return TEXT_RANKING
    return _task_of_head((type(model).__name__,))


def _task_of_head(names: Sequence[str]) -> Task | None:
    """Return the task of an architecture's head; None for none, or one that is not served."""
    for task in TASKS.values():
        head = task.auto_class().__name__.removeprefix("AutoModel")
        if any(name.removesuffix("Simple").endswith(head) for name in names):
            return task
    return None


def untrained_head(config: PreTrainedConfig, model: str, task: Task) -> str:
    """Return what is wrong with a checkpoint that has no head for a task, and no cure yet.

    Args:
        config: the checkpoint's.
        model: its name.
        task: that is asked of it.
    """
    names = tuple(getattr(config, "architectures", None) or ())
    found = _task_of_head(names)
    if found is not None and found.name != task.name:
        return (
            f"model {model!r} is a {names[0]}, whose head answers {found.name} and not "
            f"{task.name}: write task: {found.name}"
        )
    if "classification" in task.name:
        return f"model {model!r} has no trained classification head for these labels"
    return f"model {model!r} has no trained head for {task.name}"


def task_of_checkpoint(path: str) -> Task:
    """Return the task that a checkpoint was saved for.

    Args:
        path: hub name, folder or pkg://PACKAGE/PATH.

    Raises:
        SourceError: nothing there.
        ModelError: as `infer_task`.
    """
    from transformers import AutoConfig

    source = model_source(ModelConfig(path=path))

    def load(commit: Commit | None) -> PreTrainedConfig:
        revision = {} if commit is None else {"revision": commit.revision}
        found: PreTrainedConfig = AutoConfig.from_pretrained(  # nosec B615 # a commit
            source.location, trust_remote_code=False, **revision
        )
        return found

    with folder_errors(source, f"model {path!r}"):
        return infer_task(from_hub(source, "model", "give a FOLDER", load), path)


def _is_text_encoder(config: PreTrainedConfig, architecture: str) -> bool:
    """Return whether a model is an encoder of texts without a head."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    known = MODEL_MAPPING_NAMES.get(config.model_type)
    return architecture == known and hasattr(config, "vocab_size") and not config.is_encoder_decoder


def _other_task(architecture: str) -> str:
    """Return what an architecture is for, in brackets; empty where it is not known."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    known = getattr(transformers, architecture, None)
    try:
        return f" ({TasksManager.infer_task_from_model(known)})"
    except (ValueError, KeyError, AttributeError):
        return ""
