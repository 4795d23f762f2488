"""Every test runs with its shapes checked, under strict dtype promotion and with x64 enabled.

Nearly all the time goes into compiling programs that run once, so that the compiler is told not to
optimise them (``JAXMDN_TEST_OPTIMIZED=1`` lets it, as it does for users), and keeps them on disk
for the next run.
"""

import atexit
import gc
import importlib.metadata
import os
import signal
from pathlib import Path

import hypothesis
import jaxtyping
import numpy
import pytest

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "programs"
os.environ["JAXMDN_CHECK_TYPES"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
OPTIMIZED = bool(os.environ.get("JAXMDN_TEST_OPTIMIZED"))
if not OPTIMIZED:
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no other way
        flags.append("--xla_cpu_use_fusion_emitters=false")  # which take 60 % of compiling
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()

jaxtyping.install_import_hook("jaxmdn", "beartype.beartype")

# Whoever started the run in the background has had Ctrl-C ignored, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402 (the environment and the import hook come first)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

pytest_plugins = ["programs", "pytester"]

# `make test-nightly` asks for the second; a test that needs more examples says so.
hypothesis.settings.register_profile("ci", max_examples=15, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=1000, deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci")

#: Linux gives a process 65,530 memory maps; every compiled program takes some, and at so many a
#: worker of the whole run holds 4 GB.
MOST_MAPS = 15_000


#: Dear ones, of which the push tier has another dtype, family, covariance or number (or the
#: optimised tier the same); of names with a star, every part.
NIGHTLY = (
    "test_bounds.py::test_the_limit_at_a_bound[beta-moved",
    "test_everywhere.py::test_crps_is_finite_and_probabilities_are_such[beta]",
    "test_everywhere.py::test_draws_do_not_round_to_the_ends[float32-",
    "test_far_from_zero.py::test_large_counts_in_float32[1000000000.0]",
    "test_modes.py::test_modes_of_products_against_a_grid[student-t]",
    "test_regions.py::test_a_density_that_is_infinite_at_both_ends[",
    "test_supports.py::test_merged_independent_densities_are_scored_and_classes_averaged",
    "test_factorized.py::test_every_family_stands_beside_every_other",
    "test_inference.py::test_many_quantiles_are_those_of_each[families]",
    "test_left_out.py::test_rows_that_are_left_out_leave_no_trace[families-",
    "test_left_out.py::test_the_output_layer_does_not_see_them_either[families-",
    "test_transforms.py::test_every_subset_and_order_against_dense_covariances[full]",
    "test_scoring.py::test_component_quantiles_are_the_marginals_quantiles[isotropic]",
    "test_nn.py::test_initial_density_is_the_datas_for_every_input[diagonal]",
    "test_export.py::test_archive_is_read_with_numpy_alone[isotropic",
    "test_checkpoint.py::test_a_pickle_is_read_by_another_process[True]",
    "test_watch.py::test_what_the_loss_sees_is_what_the_density_says[False]",
    "test_widening.py::test_normals_are_scaled_and_convolved[independent]",
    "test_cli.py::test_fit_several_targets",
    "test_factorized.py::test_inverse_config_and_equality",
    "test_factorized.py::test_fit_finds_each_output_s_density",
    "test_factorized.py::test_marginals_and_conditionals_of_every_subset",
    "test_factorized.py::test_independent_outputs_add_up_and_keep_to_themselves",
    "test_scoring.py::test_component_quantiles_are_the_marginals_quantiles[full]",
    "test_objectives.py::test_cells_of_a_mixture_of_families_add_up_to_one",
    "test_estimator.py::test_predictions_are_those_of_the_density[single]",
    "test_graph.py::test_inverse_and_what_lies_beyond_the_graph",
    "test_conformal.py::test_leading_axes_are_pooled_and_classes_are_mixed",
    "test_autoregressive.py::test_training_reaches_the_truth",
    "test_autoregressive.py::test_initial_density_is_the_product_of_the_marginals",
    "test_autoregressive.py::test_a_head_in_other_units_keeps_each_output_s_raw_numbers",
    "test_incomplete_functions.py::test_gamma_tails_have_the_derivative_in_the_shape",
    "test_algebra.py::test_temperatures_of_classes_dead_weights_and_gradients",
    "test_interop.py::test_categorical_loses_and_regains_its_event_axis",
    "test_crps.py::test_components_that_nearly_coincide_in_float32[student]",
    "test_crps.py::test_mixtures_are_the_integral_of_the_squared_difference[student]",
    "test_incomplete_functions.py::test_beta_density_of_extreme_shapes",
    "test_indexing.py::",
    "test_interop.py::test_univariate_distributions_of_distrax_own_making",
    "test_jumps.py::test_independent_heads_with_a_class_among_them",
    "test_jumps.py::test_jumps_are_scipy_s",
    "test_jumps.py::test_rosenblatt_s_numbers_are_independent_too",
    "test_own_families.py::test_a_power_tail_and_the_edge_of_the_support",
    "test_own_families.py::test_what_follows_from_a_log_density[float64]",
    "test_crps.py::test_numbers_by_other_formulas[float32]",
    "test_crps.py::test_gradients_are_those_of_the_integral",
    "test_sides.py::test_a_derivative_that_nobody_asks_for_costs_no_integral",
    "test_supports.py::test_a_marginal_of_a_mixed_density_is_one_of_its_family[3]",
    "test_supports.py::test_regions_of_angles_go_around_the_circle[float64]",
    "test_supports.py::test_regions_of_angles_move_with_the_parameters",
    "test_transforms.py::test_every_subset_and_order_against_dense_covariances[isotropic]",
    "test_transforms.py::test_every_subset_and_order_against_dense_covariances[low_rank]",
    "test_bounds.py::test_truncated_normal_far_in_the_tail[float64]",
    "test_regions.py::test_derivatives_of_regions",
    "test_inference.py::test_many_quantiles_are_those_of_each[counts]",
    "test_inference.py::test_parameters_that_are_no_numbers_have_no_quantile",
    "test_real_line_edges.py::test_student_and_its_derivatives_in_df_against_mpmath[float32]",
    "test_count_edges.py::test_extreme_counts[float64]",
    "test_suite.py::test_families_beside_the_normal",
    "test_supports.py::test_a_marginal_of_a_mixed_density_is_one_of_its_family[1]",
    "test_export.py::test_jax_program_of_an_ensemble_runs_without_jaxmdn",
    "test_export.py::test_archive_is_read_with_numpy_alone[diagonal]",
    "test_export.py::test_archive_is_read_with_numpy_alone[fixed df]",
    "test_ensemble.py::test_other_heads_are_stacked[gamma]",
    "test_ensemble.py::test_classes_are_averaged_probabilities",
    "test_ensemble.py::test_targets_on_a_grid_get_the_floor_of_their_rounding",
    "test_conformal.py::test_highest_density_regions_of_a_wrong_model_hold_their_level",
    "test_modes.py::test_derivatives_of_modes_and_their_heights[low_rank]",
    "test_information.py::test_gradients_of_the_bounds[low_rank]",
    "test_far_tails.py::test_values_and_slopes*float64]",
    "test_everywhere.py::test_crps_is_finite_and_probabilities_are_such[hurdle-gamma]",
    "test_own_families.py::test_regions_of_a_family_without_a_reflection",
    "test_grids.py::test_an_ensemble_scores_and_trains_the_probabilities_of_cells",
    "test_ceiling.py::test_a_run_above_the_ceiling_fails[2-100-0]",
    "test_cli.py::test_demo_inverse_problem_is_within_a_twentieth_nat",  # optimised
    "test_inference.py::test_levels_lead",
    "test_inference.py::test_many_quantiles_are_those_of_each[heads]",
    "test_supports.py::test_a_marginal_of_a_mixed_density_is_one_of_its_family[2]",
    "test_settings.py::test_ranks[gamma]",
    "test_settings.py::test_symbolic_rows[gamma]",
    "test_chunked.py::test_second_derivatives_in_all_arguments_at_once[low_rank",
    "test_chunked.py::test_second_derivatives_in_all_arguments_at_once[diagonal",
    "test_objectives.py::test_natural_em_is_fisher_inverse_times_score[full]",
    "test_objectives.py::test_natural_em_is_fisher_inverse_times_score[isotropic]",
    "test_ensemble.py::test_networks_spread_over_four_devices_are_those_of_one",
    "test_settings.py::test_no_answer_holds_a_nan[gamma]",
    "test_bounds.py::test_truncated_normal_far_in_the_tail[float32]",
    "test_train.py::test_objectives_train[energy_score]",
    "test_inference.py::test_what_is_exceeded_hardly_ever[float64]",
    "test_sides.py::test_student_from_few_degrees_of_freedom_to_none_too_many[float64]",
    "test_interop.py::test_everything_else_works_without_distrax[absent]",
    "test_scores.py::test_multivariate_scores_broadcast_map_and_keep_dtypes[variogram_score]",
    "test_count_edges.py::test_samples_of_small_and_large_rates[hurdle-float64]",
)


#: Tiers of a few files: nothing else is imported for them.
FEW = ("optimised", "version")


def pytest_ignore_collect(collection_path, config):
    """Imports take as long as a tenth of such a tier."""
    tier = config.option.markexpr.partition(" ")[0]
    if tier in FEW and collection_path.suffix == ".py":
        return f"mark.{tier}" not in collection_path.read_text() or None
    return None


def pytest_collection_finish():
    """Python's search for cycles among what tracing leaves behind took a sixth of its time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_sessionfinish(session):
    """A worker leaves its memory to the system: to free all programs takes over ten seconds."""
    if hasattr(session.config, "workerinput"):
        atexit.register(os._exit, 0)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Order the files, each of which runs in one process (``--dist loadfile``), long ones first.

    Otherwise one process would wait for the other at the end. The contract's file is short, but
    nothing takes as long.
    """
    for item in items:
        if any(all(part in item.nodeid for part in name.split("*")) for name in NIGHTLY):
            item.add_marker(pytest.mark.nightly)
    sizes = {item.path: item.path.stat().st_size for item in items}
    first = ("test_notebooks", "test_family_contract")
    items.sort(key=lambda item: (item.path.stem not in first, -sizes[item.path]))


@pytest.fixture
def user_errors():
    """Switch the shape checker off, so that a test sees the message a user would see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def as_users_run():
    """JAX's own defaults: Flax and Optax are not written for strict dtype promotion."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def float16():
    """Skip where XLA itself has no float16: a processor of SSE4.2 alone cannot convert it."""
    try:
        jax.jit(lambda x: 2 * x)(numpy.ones(1, numpy.float16))
    except jax.errors.JaxRuntimeError as error:
        pytest.skip(f"XLA: {error}")


@pytest.fixture(autouse=True, scope="module")
def forget_programs_before_memory_maps_run_out():
    """Each process keeps what it has compiled, for the files to come, as long as it may."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
