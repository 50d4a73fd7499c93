"""Tests whose figures are those of processors with products of 8-bit integers (VNNI, AMX, dot).

On others pairs of 8-bit products saturate: int8 models lose more than these tests allow, and every
quantized model carries a note on it. Such a processor skips them (since 2026-11).
"""

from __future__ import annotations

SATURATING = frozenset(
    {
        "test_a_folder_loaded_with_a_shape_gives_the_same_scores",
        "test_a_fresh_process_gets_the_same_logits_bit_for_bit_from_every_backend",
        "test_a_loss_that_holds_keeps_nothing_and_a_stricter_one_keeps_more",
        "test_a_processor_without_vnni_is_told",
        "test_a_table_that_is_left_out_stays_in_fp32",
        "test_a_vit_is_dynamic_by_default_and_near_torch",
        "test_an_engine_that_refuses_a_model_is_said",
        "test_an_openvino_file_is_terse_and_keeps_the_names_of_modules",
        "test_auto_is_static_for_networks_of_convolutions",
        "test_copies_give_the_same_scores_and_pickles_need_no_folder",
        "test_dynamic_int8_of_torch_equals_a_float64_reference",
        "test_engines_that_are_not_installed_are_named_with_their_pip_command",
        "test_every_option_changes_the_result",
        "test_excluded_modules_stay_in_fp32",
        "test_memory_goes_into_the_rows",
        "test_openvino_for_one_shape_gives_the_same_logits",
        "test_openvino_uses_its_transformer_mode_for_attention_alone",
        "test_outliers_lose_less",
        "test_quantized_models_can_be_pickled",
        "test_quantized_modules_give_the_modules_output",
        "test_refuses_a_model_that_loses_its_answers_and_leaves_it_as_it_was",
        "test_refuses_model_files_that_are_cut_missing_or_of_another_model",
        "test_static_ranges_of_onnxruntime_lie_behind_the_activations",
        "test_the_default_mode_is_near_the_model_and_covers_its_linears",
        "test_the_distance_is_that_of_the_engine",
        "test_the_example_runs_with_the_engine_and_tokenizers_alone",
        "test_the_row_is_what_the_steps_give_by_hand",
        "test_the_sensitive_layer_stays_and_the_loss_holds",
        "test_the_simulation_computes_what_the_engine_computes",
        "test_timing_compiles_for_the_shape_that_it_measures",
        "test_torch_foretells_what_onnxruntime_loses",
        "test_training_leaves_plain_weights_on_the_grid",
        "test_what_a_row_gives_hardly_depends_on_its_batch",
    }
)
