"""hfcompress: prune, distill and quantize Hugging Face models, and see what it costs.

The names below are the public ones. Each is loaded when it is first asked for, so that
``import hfcompress`` costs nothing; ``__init__.pyi`` tells type checkers of them. Importing the
package also lets transformers load checkpoints of shrunk models (``hfcompress/checkpoint``).
"""

from __future__ import annotations

import importlib

from hfcompress.checkpoint.hook import install as _install_hook
from hfcompress.version import __version__ as __version__

# Module -> the public names that it defines.
_PUBLIC: dict[str, tuple[str, ...]] = {
    "benchmarking.check": ("CheckReport", "check"),
    "benchmarking.config": ("BenchConfig",),
    "benchmarking.feasibility": ("Feasibility", "feasibility"),
    "benchmarking.run": ("BenchResult", "bench"),
    "storage.caches": ("CacheEntry", "cache_entries", "prune_cache"),
    "calibration.batches": ("Calibration",),
    "checkpoint.modules": ("load_module", "save_module"),
    "checkpoint.save": ("record_shapes", "save_compressed"),
    "distillation.arguments": ("DistillationArguments",),
    "distillation.cache": ("TeacherCache",),
    "distillation.config": ("DistillationConfig", "DistillationLossConfig"),
    "distillation.loop": ("DistillReport", "distill"),
    "distillation.losses": ("DistillationLoss", "distillation_loss"),
    "distillation.static_student": ("StaticStudentConfig", "make_static_student"),
    "distillation.student": ("make_student",),
    "distillation.teacher_loss": ("TeacherLoss",),
    "distillation.teacher_outputs": ("TeacherOutputs",),
    "distillation.text_augmentation": ("augment_texts",),
    "distillation.text_student": ("TextStudentConfig", "make_text_student"),
    "distillation.train": ("train_with_distillation",),
    "distillation.trainer": ("DistillationTrainer",),
    "errors": ("BadInputError", "HfcompressError"),
    "pruning.familiar": (
        "progressive_prune",
        "prune_model_by_magnitude",
        "prune_structured",
        "prune_weights_by_magnitude",
    ),
    "layers.affine": ("dequantize_layer_weights", "quantize_layer_weights", "round_trip_error"),
    "layers.sparse_linear": ("SparseLinear", "SparseReport", "densify", "sparsify"),
    "measure.certificate": ("Certificate", "certify_drop"),
    "measure.evaluation": ("compare",),
    "measure.latency": ("measure_latency",),
    "measure.macs": ("count_macs",),
    "measure.profiles": ("profiles",),
    "measure.size": (
        "CompressionMetrics",
        "calculate_model_size",
        "calculate_sparsity",
        "count_parameters",
    ),
    "measure.weights": ("analyze_weight_distribution",),
    "models.cross_encoder": ("AutoCrossEncoder",),
    "models.modeling_embedding": ("AutoEmbeddingModel",),
    "models.surgery": ("load_shapes",),
    "models.upload": ("push",),
    "pruning.callback": ("PruningCallback",),
    "pruning.config": ("PruningConfig",),
    "pruning.iterative": ("find_ticket", "progressive"),
    "pruning.keep_zeros": ("keep_zeros",),
    "pruning.prune": ("PruneReport", "prune"),
    "pruning.sensitivity": ("sensitivity",),
    "pruning.trainer": ("PruningArguments", "PruningTrainer"),
    "pruning.training_config": ("LotteryConfig", "ProgressiveConfig", "PruningTrainingConfig"),
    "quantization.config": ("MixedPrecisionConfig", "QuantizationConfig"),
    "quantization.load": ("load",),
    "quantization.model": ("QuantizedModel",),
    "quantization.qat": ("QuantizationAwareCallback", "quantization_aware"),
    "quantization.quantize": ("quantize",),
    "recipes.schema": ("MeasureConfig", "Recipe", "load_recipe"),
    "recipes.step_configs": ("DistillConfig", "FinetuneConfig", "RecoverConfig"),
    "search.certify": ("certify",),
    "search.compress": ("CompressResult", "compress"),
    "search.modules": ("CompressedModule", "compress_module"),
    "search.target": ("CompressTarget",),
    "shrinking.config": ("ShrinkConfig",),
    "shrinking.neurons": ("compute_neuron_importance", "prune_layer_neurons"),
    "shrinking.report": ("ShrinkReport",),
    "shrinking.shrink": ("shrink",),
    "shrinking.vocabulary.shrink": ("VocabularyReport", "shrink_vocabulary"),
    "shrinking.vocabulary.tokenizer": ("VocabularyConfig",),
    "sweep.comparison": ("RunComparison", "compare_runs", "report_runs"),
    "sweep.modules": ("sweep_module",),
    "sweep.pipeline": ("CompressionPipeline", "PipelineResult"),
    "sweep.plan": ("Plan", "plan"),
    "sweep.run": ("SweepResult", "run"),
    "training.loops": ("evaluate", "train_one_epoch"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hfcompress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hfcompress.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__


_install_hook()
