"""The regressor as scikit-learn and its neighbours use it; its numbers are the density's."""

import pickle
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from crepes import ConformalRegressor, WrapRegressor
from mapie.regression import ConformalizedQuantileRegressor, SplitConformalRegressor
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from skrub import TableVectorizer

import jaxmdn
from jaxmdn.estimator import MDNRegressor, answers, neg_crps, neg_log_score
from jaxmdn.train import Recipe

pytestmark = pytest.mark.usefixtures("as_users_run")

SMALL = {
    "recipe": None,
    "components": 2,
    "hidden_features": (8,),
    "embedding": None,
    "max_epochs": 30,
    "learning_rate": 0.03,
    "patience": None,
    "validation": None,
    "random_state": 0,
}
ENSEMBLE = {
    "recipe": Recipe(folds=2, cycles=(2,), frequency_scales=(0.2,)),
    "components": 2,
    "hidden_features": (8,),
    "random_state": 0,
}
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "rows are shuffled into batches by their "
    "number, so that a weight of two is not the same steps as a row that stands there twice"
}
#: In the push tier: those that compile nothing or little.
QUICK = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_complex_data",
    "check_estimators_empty_data_messages",
    "check_estimators_unfitted",
    "check_parameters_default_constructible",
    "check_fit2d_1sample",
    "check_fit1d",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_all_zero_sample_weights_error",
)


def table(count=64):
    """y | x ~ N(3 x_0 + 10, 1): in the hundreds, to see units."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2))
    return x, 100 * (3 * x[:, 0] + 10 + rng.normal(size=count))


@pytest.fixture(scope="module")
def single():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        return MDNRegressor(**SMALL).fit(*table())


@pytest.fixture(scope="module")
def ensemble():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        x, y = table()
        x = np.where(np.arange(x.size).reshape(x.shape) % 9 == 0, np.nan, x)
        return MDNRegressor(**ENSEMBLE).fit(x, y)


def run_checks(parameters, wanted=None):
    skipped = []
    estimator = MDNRegressor(**parameters)
    for own, check in estimator_checks_generator(estimator):
        name = check.func.__name__
        if name in EXPECTED or not (wanted is None or name in wanted):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check(own)
            except pytest.skip.Exception:
                skipped.append(name)
            except Exception as error:
                if type(error).__name__ != "SkipTest":
                    raise AssertionError(name) from error
                skipped.append(name)
    return skipped


def test_some_checks_of_scikit_learn(user_errors):
    assert not run_checks({**SMALL, "components": 1}, QUICK)


@pytest.mark.nightly
def test_every_check_of_scikit_learn(user_errors):
    skipped = run_checks({**SMALL, "components": 1})
    assert skipped == ["check_array_api_input"]  # which needs SCIPY_ARRAY_API


@pytest.mark.nightly
def test_checks_of_scikit_learn_for_an_ensemble(user_errors):
    run_checks(ENSEMBLE, (*QUICK, "check_regressors_int", "check_methods_subset_invariance"))


@pytest.mark.parametrize("which", ["single", pytest.param("ensemble", marks=pytest.mark.nightly)])
def test_predictions_are_those_of_the_density(which, request):
    model = request.getfixturevalue(which)
    x, y = table()
    x, y = x[:11], y[:11]
    density = model.predict_distribution(x)
    mean, std = model.predict(x, return_std=True)
    assert mean.dtype == std.dtype == np.float64
    np.testing.assert_allclose(mean, jaxmdn.mean(density)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(std**2, jaxmdn.variance(density)[:, 0], rtol=1e-4)
    np.testing.assert_array_equal(mean, model.predict(x))
    levels = [0.05, 0.5, 0.95]
    quantiles = model.predict_quantiles(x, levels)
    for level, value in zip(levels, quantiles, strict=True):
        np.testing.assert_allclose(model.cdf(x, value), level, atol=1e-5)
    np.testing.assert_array_equal(model.predict(x, output_type="median"), quantiles[1])
    np.testing.assert_allclose(model.predict_interval(x, 0.9), quantiles[[0, 2]], rtol=1e-5)
    np.testing.assert_array_equal(model.at_quantile(0.05).predict(x), quantiles[0])
    np.testing.assert_allclose(
        model.log_prob(x, y), model.result_.log_prob(x, y[:, None]), rtol=1e-5
    )
    np.testing.assert_allclose(
        model.crps(x, y), jaxmdn.crps(density, y.astype("f")[:, None])[:, 0], rtol=1e-4
    )
    assert neg_log_score(model, x, y) == pytest.approx(model.log_prob(x, y).mean())
    assert neg_crps(model, x, y) == pytest.approx(-model.crps(x, y).mean())
    draws = model.sample_y(x, 2000, random_state=1)
    assert draws.shape == (11, 2000)
    uniform = np.mean(draws < quantiles[1][:, None])
    assert abs(uniform - 0.5) < 4 * 0.5 / np.sqrt(draws.size)


def test_the_highest_mode_and_all_answers_at_once(single):
    x, _ = table()
    found = single.predict(x[:11], output_type="full", quantiles=[0.1, 0.9])
    assert set(found) == {"mean", "median", "mode", "quantiles", "distribution"}
    mode = found["mode"]
    height = single.log_prob(x[:11], mode)
    for other in (found["mean"], found["median"], mode + 1.0, mode - 1.0, *found["quantiles"]):
        assert (height >= single.log_prob(x[:11], other) - 1e-4).all()
    np.testing.assert_array_equal(found["quantiles"][1], single.predict_quantiles(x[:11], [0.9])[0])


def test_results_do_not_depend_on_the_batch_and_few_programs_are_compiled(single, monkeypatch):
    monkeypatch.setattr(answers, "LARGEST", 32)
    x, y = table()
    everything, scores = single.predict(x), single.log_prob(x, y)
    draws = single.sample_y(x, 3)
    answers._evaluate.clear_cache()
    for count in (1, 2, 3, 5, 8, 13, 16, 17, 40):
        np.testing.assert_allclose(single.predict(x[:count]), everything[:count], rtol=2e-7)
        np.testing.assert_allclose(single.log_prob(x[:count], y[:count]), scores[:count], rtol=1e-6)
    assert answers._evaluate._cache_size() == 2 * 2  # 16 and 32 rows
    np.testing.assert_allclose(single.sample_y(x[:20], 3), draws[:20], rtol=1e-6)
    assert single.sample_y(x[:2], 3).tolist() == single.sample_y(x[:2], 3).tolist()


def test_pickled_and_cloned(single):
    x, y = table()
    again = pickle.loads(pickle.dumps(single))
    np.testing.assert_array_equal(again.predict(x), single.predict(x))
    fresh = clone(single).fit(x, y)
    np.testing.assert_array_equal(fresh.predict(x), single.predict(x))


def test_several_outputs_one_of_them_constant():
    x, y = table()
    both = np.stack([y, np.full(len(y), 7.25)], axis=1)
    with pytest.warns(UserWarning, match=r"output\(s\) \[1\] of y are constant"):
        model = MDNRegressor(**SMALL).fit(x, both)
    mean, std = model.predict(x, return_std=True)
    assert mean.shape == (64, 2)
    assert (mean[:, 1] == 7.25).all()
    assert (std[:, 1] == 0).all()
    assert (std[:, 0] > 0).all()
    assert (model.predict_interval(x)[:, :, 1] == 7.25).all()
    assert (model.sample_y(x, 3)[:, 1] == 7.25).all()
    assert (model.crps(x, both)[:, 1] == 0).all()
    assert np.isfinite(model.log_prob(x, both)).all()
    assert (model.log_prob(x, both + 1.0) == -np.inf).all()
    np.testing.assert_array_equal(model.cdf(x, both - [0, 1])[:, 1], 0)


@pytest.mark.parametrize("recipe", [None, "fast"])
def test_a_constant_target_is_predicted(recipe):
    x, y = table()
    with pytest.warns(UserWarning, match="constant"):
        model = MDNRegressor(recipe).fit(x, np.full(len(y), 1 / 3))
    assert (model.predict(x) == 1 / 3).all()
    assert (model.predict(x, output_type="median") == 1 / 3).all()
    mean, std = model.predict(x, return_std=True)
    assert (mean == 1 / 3).all()
    assert (std == 0).all()
    assert (model.sample_y(x, 2) == 1 / 3).all()
    assert neg_crps(model, x, np.zeros(64)) == pytest.approx(-1 / 3)
    assert neg_log_score(model, x, np.full(64, 1 / 3)) == 0
    assert set(model.predict(x, output_type="full")) == {"mean", "median", "mode", "quantiles"}
    with pytest.raises(ValueError, match="a single value has no density"):
        model.predict_distribution(x)


def test_going_on():
    x, y = table()
    once = MDNRegressor(**SMALL, warm_start=True).fit(x, y)
    before = once.score(x, y)
    standard = once.result_.y_standardizer
    once.fit(x, y)
    assert once.score(x, y) > before
    assert once.result_.y_standardizer is standard
    parts = MDNRegressor(**SMALL)
    for _ in range(60):
        parts.partial_fit(x, y)
    assert parts.score(x, y) > 0.5
    with pytest.raises(ValueError, match="2 output"):
        parts.partial_fit(x, np.stack([y, y], axis=1))
    with pytest.raises(ValueError, match="warm_start goes on with a single network"):
        MDNRegressor("fast", warm_start=True).fit(x, y)
    assert not hasattr(MDNRegressor("fast"), "partial_fit")


def test_pipelines_transformed_targets_and_tables():
    x, y = table()
    small = MDNRegressor(**SMALL)
    model = make_pipeline(StandardScaler(), small).fit(x, y)
    inside, own = model[-1], model[:-1].transform(x)
    assert inside.predict_interval(own).shape == (2, 64)
    assert neg_crps(model, x, y) == neg_crps(inside, own, y)
    assert neg_log_score(make_pipeline(inside), own, y) == neg_log_score(inside, own, y)
    model = TransformedTargetRegressor(small, func=np.cbrt, inverse_func=lambda z: z**3)
    assert model.fit(x, y).predict(x).shape == y.shape
    with pytest.raises(TypeError, match="MDNRegressor standardises by itself"):
        neg_crps(model, x, y)
    frame = pd.DataFrame({"size": x[:, 0], "town": np.where(x[:, 1] > 0, "Ulm", "Jena")})
    model = make_pipeline(TableVectorizer(), small).fit(frame, y)
    assert model.score(frame, y) > 0.5


def test_categories_are_known_by_their_type(user_errors):
    """Two indicators, as pandas' own; what was never met, or is missing, is neither."""
    x, y = table()
    towns = np.where(x[:, 0] > 0, "Ulm", "Jena").astype(object)
    frame = pd.DataFrame({"town": pd.Categorical(towns)})
    model = MDNRegressor(**SMALL).fit(frame, y)
    spread = pd.get_dummies(frame["town"]).to_numpy(float)  # Jena, Ulm
    plain = MDNRegressor(**SMALL).fit(spread, y)
    np.testing.assert_array_equal(model.predict(frame), plain.predict(spread))
    assert model.n_features_in_ == 1
    assert model.columns_.categories == (("Jena", "Ulm"),)
    odd = pd.DataFrame({"town": pd.Categorical(["Bonn", None, "Ulm"])})
    expected = plain.predict(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(model.predict(odd), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(odd), expected)
    with pytest.raises(ValueError, match="X lacks the column 'town', a category in fit"):
        model.predict(spread)


@pytest.mark.nightly
def test_categories_and_gaps_of_an_ensemble():
    x, y = table()
    frame = pd.DataFrame({"size": x[:, 0], "town": pd.Categorical(np.where(x[:, 1] > 0, "U", "J"))})
    frame.loc[::9, "size"] = np.nan
    frame.loc[5, "town"] = None
    model = MDNRegressor(**ENSEMBLE).fit(frame, y)
    density = model.predict_distribution(frame)
    np.testing.assert_allclose(model.predict(frame), jaxmdn.mean(density)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
        model.result_.log_prob(frame, y[:, None]), model.log_prob(frame, y), rtol=1e-4
    )
    assert model.result_.importance(frame, y[:, None], num_repeats=2).value.shape == (2,)
    scores = cross_val_score(model, frame, y, cv=2, scoring=neg_crps, error_score="raise")
    assert np.isfinite(scores).all()


@pytest.mark.nightly
@pytest.mark.parametrize("jobs", [1, 2])
def test_grid_search(jobs):
    x, y = table(30)
    grid = {"components": [1, 2]}
    options = {"scoring": neg_log_score, "cv": 2, "n_jobs": jobs, "error_score": "raise"}
    search = GridSearchCV(MDNRegressor(**SMALL), grid, **options).fit(x, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.predict(x).shape == (30,)


def test_conformal_intervals_of_mapie(single):
    x, y = table()
    split = SplitConformalRegressor(single, conformity_score="std_normalized")
    points, intervals = split.conformalize(x, y).predict_interval(x)
    np.testing.assert_allclose(points, single.predict(x))
    # The half width is a multiple of the standard deviation, the same for all rows.
    ratio = (intervals[:, 1, 0] - points) / single.predict(x, return_std=True)[1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    prefit = [single.at_quantile(p) for p in (0.05, 0.95, 0.5)]
    model = ConformalizedQuantileRegressor(prefit, confidence_level=0.9, prefit=True)
    _, intervals = model.conformalize(x, y).predict_interval(x)
    inside = (intervals[:, 0, 0] <= y) & (y <= intervals[:, 1, 0])
    assert inside.mean() >= 0.9


def test_conformal_intervals_of_crepes(single):
    """Of one width, and as multiples of the predicted standard deviation."""
    x, y = table()
    points, deviations = single.predict(x, return_std=True)
    wrapped = WrapRegressor(single)
    wrapped.calibrate(x, y)
    own = ConformalRegressor().fit(y - points, sigmas=deviations)
    for intervals, unit in (
        (wrapped.predict_int(x, confidence=0.9), np.ones(64)),
        (own.predict_int(points, sigmas=deviations, confidence=0.9), deviations),
    ):
        np.testing.assert_allclose(intervals.mean(axis=1), points, rtol=1e-6)
        ratio = (intervals[:, 1] - points) / unit
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
        inside = (intervals[:, 0] <= y) & (y <= intervals[:, 1])
        assert inside.mean() >= 0.9


@pytest.mark.nightly
def test_families_and_heads():
    x, _ = table()
    counts = np.random.default_rng(1).poisson(np.exp(1 + 0.3 * x[:, 0]))
    model = MDNRegressor(**{**SMALL, "family": "poisson"}).fit(x, counts)
    assert model.predict(x).min() > 0
    assert "mode" not in model.predict(x[:2], output_type="full")
    with pytest.raises(ValueError, match="outside the support"):
        MDNRegressor(**{**SMALL, "family": "gamma"}).fit(x, x[:, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.predict(x, output_type="average"), "output_type must be one of"),
        (lambda m, x: m.predict(x, True, output_type="mode"), "leave one of them out"),
        (lambda m, x: m.predict(x, output_type="quantiles", quantiles=[2.0]), "levels in"),
        (lambda m, x: m.predict_interval(x, 90), "coverage"),
        (lambda m, x: m.log_prob(x, np.zeros((len(x), 2))), "y must have shape"),
        (lambda m, x: m.at_quantile(-1), "levels in"),
        (lambda m, x: m.sample_y(x, 0), "n_samples"),
        (lambda m, x: m.predict(x[:, :1]), "features"),
    ],
)
def test_errors(single, call, message, user_errors):
    with pytest.raises(ValueError, match=message):
        call(single, table()[0])
