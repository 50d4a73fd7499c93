"""hfcompress: prune, distill and quantize Hugging Face models, and see what it costs.

The names below are the public ones; each is loaded when it is first asked for, so that
``import hfcompress`` costs nothing. Importing it also lets transformers load the checkpoints of
shrunk models (see ``hfcompress/checkpoint``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hfcompress.checkpoint import hook as _hook

if TYPE_CHECKING:
    from hfcompress.benchmark.config import BenchConfig as BenchConfig
    from hfcompress.benchmark.run import BenchResult as BenchResult
    from hfcompress.benchmark.run import bench as bench
    from hfcompress.checkpoint.save import record_shapes as record_shapes
    from hfcompress.checkpoint.write import save_compressed as save_compressed
    from hfcompress.distillation.arguments import DistillationArguments as DistillationArguments
    from hfcompress.distillation.augment import augment_texts as augment_texts
    from hfcompress.distillation.cache import TeacherCache as TeacherCache
    from hfcompress.distillation.config import DistillationConfig as DistillationConfig
    from hfcompress.distillation.losses import DistillationLoss as DistillationLoss
    from hfcompress.distillation.losses import distillation_loss as distillation_loss
    from hfcompress.distillation.outputs import TeacherOutputs as TeacherOutputs
    from hfcompress.distillation.student import make_student as make_student
    from hfcompress.distillation.teacher import TeacherLoss as TeacherLoss
    from hfcompress.distillation.text_student import TextStudentConfig as TextStudentConfig
    from hfcompress.distillation.text_student import make_text_student as make_text_student
    from hfcompress.distillation.train import train_with_distillation as train_with_distillation
    from hfcompress.distillation.trainer import DistillationTrainer as DistillationTrainer
    from hfcompress.errors import BadInputError as BadInputError
    from hfcompress.errors import HfcompressError as HfcompressError
    from hfcompress.measure.latency import measure_latency as measure_latency
    from hfcompress.measure.macs import count_macs as count_macs
    from hfcompress.measure.profiles import profiles as profiles
    from hfcompress.measure.quality import compare as compare
    from hfcompress.measure.summary import CompressionMetrics as CompressionMetrics
    from hfcompress.measure.summary import calculate_model_size as calculate_model_size
    from hfcompress.measure.summary import calculate_sparsity as calculate_sparsity
    from hfcompress.measure.summary import count_parameters as count_parameters
    from hfcompress.measure.weights import (
        analyze_weight_distribution as analyze_weight_distribution,
    )
    from hfcompress.pruning.calibration import Calibration as Calibration
    from hfcompress.pruning.callback import PruningCallback as PruningCallback
    from hfcompress.pruning.config import PruningConfig as PruningConfig
    from hfcompress.pruning.lottery import find_ticket as find_ticket
    from hfcompress.pruning.progressive import progressive as progressive
    from hfcompress.pruning.sensitivity import sensitivity as sensitivity
    from hfcompress.pruning.structured.config import ShrinkConfig as ShrinkConfig
    from hfcompress.pruning.structured.neurons import (
        compute_neuron_importance as compute_neuron_importance,
    )
    from hfcompress.pruning.structured.neurons import prune_layer_neurons as prune_layer_neurons
    from hfcompress.pruning.structured.report import ShrinkReport as ShrinkReport
    from hfcompress.pruning.structured.shrink import shrink as shrink
    from hfcompress.pruning.trainer import PruningArguments as PruningArguments
    from hfcompress.pruning.trainer import PruningTrainer as PruningTrainer
    from hfcompress.pruning.training_config import LotteryConfig as LotteryConfig
    from hfcompress.pruning.training_config import ProgressiveConfig as ProgressiveConfig
    from hfcompress.pruning.training_config import PruningTrainingConfig as PruningTrainingConfig
    from hfcompress.pruning.unstructured import PruneReport as PruneReport
    from hfcompress.pruning.unstructured import prune as prune
    from hfcompress.quantization.affine import dequantize_layer_weights as dequantize_layer_weights
    from hfcompress.quantization.affine import quantize_layer_weights as quantize_layer_weights
    from hfcompress.quantization.affine import round_trip_error as round_trip_error
    from hfcompress.quantization.aware import quantization_aware as quantization_aware
    from hfcompress.quantization.callback import (
        QuantizationAwareCallback as QuantizationAwareCallback,
    )
    from hfcompress.quantization.config import MixedPrecisionConfig as MixedPrecisionConfig
    from hfcompress.quantization.config import QuantizationConfig as QuantizationConfig
    from hfcompress.quantization.predictor import load as load
    from hfcompress.quantization.quantize import quantize as quantize
    from hfcompress.quantization.quantized import QuantizedModel as QuantizedModel
    from hfcompress.recipe.compress import CompressResult as CompressResult
    from hfcompress.recipe.compress import compress as compress
    from hfcompress.recipe.distill_config import DistillConfig as DistillConfig
    from hfcompress.recipe.finetune_config import FinetuneConfig as FinetuneConfig
    from hfcompress.recipe.measure_config import MeasureConfig as MeasureConfig
    from hfcompress.recipe.pipeline import CompressionPipeline as CompressionPipeline
    from hfcompress.recipe.pipeline import PipelineResult as PipelineResult
    from hfcompress.recipe.schema import Recipe as Recipe
    from hfcompress.recipe.schema import load_recipe as load_recipe
    from hfcompress.recipe.sweep import SweepResult as SweepResult
    from hfcompress.recipe.sweep import run as run
    from hfcompress.recipe.target import CompressTarget as CompressTarget
    from hfcompress.recipe.training_config import RecoverConfig as RecoverConfig
    from hfcompress.sparse.choose import SparseReport as SparseReport
    from hfcompress.sparse.choose import densify as densify
    from hfcompress.sparse.choose import sparsify as sparsify
    from hfcompress.sparse.linear import SparseLinear as SparseLinear
    from hfcompress.vocabulary.config import VocabularyConfig as VocabularyConfig
    from hfcompress.vocabulary.shrink import VocabularyReport as VocabularyReport
    from hfcompress.vocabulary.shrink import shrink_vocabulary as shrink_vocabulary

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "BadInputError": "errors",
    "Calibration": "pruning.calibration",
    "CompressResult": "recipe.compress",
    "CompressTarget": "recipe.target",
    "CompressionMetrics": "measure.summary",
    "CompressionPipeline": "recipe.pipeline",
    "DistillConfig": "recipe.distill_config",
    "DistillationArguments": "distillation.arguments",
    "DistillationConfig": "distillation.config",
    "DistillationLoss": "distillation.losses",
    "DistillationTrainer": "distillation.trainer",
    "FinetuneConfig": "recipe.finetune_config",
    "HfcompressError": "errors",
    "LotteryConfig": "pruning.training_config",
    "MeasureConfig": "recipe.measure_config",
    "MixedPrecisionConfig": "quantization.config",
    "PipelineResult": "recipe.pipeline",
    "ProgressiveConfig": "pruning.training_config",
    "PruneReport": "pruning.unstructured",
    "PruningArguments": "pruning.trainer",
    "PruningCallback": "pruning.callback",
    "PruningConfig": "pruning.config",
    "PruningTrainer": "pruning.trainer",
    "PruningTrainingConfig": "pruning.training_config",
    "QuantizationAwareCallback": "quantization.callback",
    "QuantizationConfig": "quantization.config",
    "QuantizedModel": "quantization.quantized",
    "Recipe": "recipe.schema",
    "RecoverConfig": "recipe.training_config",
    "ShrinkConfig": "pruning.structured.config",
    "ShrinkReport": "pruning.structured.report",
    "SparseLinear": "sparse.linear",
    "SparseReport": "sparse.choose",
    "SweepResult": "recipe.sweep",
    "TeacherCache": "distillation.cache",
    "TeacherLoss": "distillation.teacher",
    "TeacherOutputs": "distillation.outputs",
    "TextStudentConfig": "distillation.text_student",
    "VocabularyConfig": "vocabulary.config",
    "VocabularyReport": "vocabulary.shrink",
    "BenchConfig": "benchmark.config",
    "BenchResult": "benchmark.run",
    "analyze_weight_distribution": "measure.weights",
    "augment_texts": "distillation.augment",
    "bench": "benchmark.run",
    "calculate_model_size": "measure.summary",
    "calculate_sparsity": "measure.summary",
    "compare": "measure.quality",
    "compress": "recipe.compress",
    "compute_neuron_importance": "pruning.structured.neurons",
    "count_macs": "measure.macs",
    "count_parameters": "measure.summary",
    "densify": "sparse.choose",
    "dequantize_layer_weights": "quantization.affine",
    "distillation_loss": "distillation.losses",
    "find_ticket": "pruning.lottery",
    "load": "quantization.predictor",
    "load_recipe": "recipe.schema",
    "make_student": "distillation.student",
    "make_text_student": "distillation.text_student",
    "measure_latency": "measure.latency",
    "profiles": "measure.profiles",
    "progressive": "pruning.progressive",
    "prune": "pruning.unstructured",
    "prune_layer_neurons": "pruning.structured.neurons",
    "quantization_aware": "quantization.aware",
    "quantize": "quantization.quantize",
    "quantize_layer_weights": "quantization.affine",
    "record_shapes": "checkpoint.save",
    "round_trip_error": "quantization.affine",
    "run": "recipe.sweep",
    "save_compressed": "checkpoint.write",
    "sensitivity": "pruning.sensitivity",
    "shrink": "pruning.structured.shrink",
    "shrink_vocabulary": "vocabulary.shrink",
    "sparsify": "sparse.choose",
    "train_with_distillation": "distillation.train",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hfcompress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hfcompress.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__


_hook.install()
