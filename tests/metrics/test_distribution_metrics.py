"""Fréchet, KID and precision/recall against closed forms and direct loops."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from edgediff.errors import BadInputError, StageFailedError
from edgediff.metrics import precision_recall as precision_recall_module
from edgediff.metrics.frechet import GaussianStatistics, frechet_distance, gaussian_statistics
from edgediff.metrics.kid import kid
from edgediff.metrics.precision_recall import precision_recall


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_statistics_are_mean_and_unbiased_covariance(rng):
    features = rng.normal(size=(50, 4)).astype(np.float32)
    mean, cov = gaussian_statistics(features)
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    # commuting covariances: sum of (m1 - m2)² + (s1 - s2)² = (9 + 0) + (1 + 4)
    a = GaussianStatistics(np.array([0.0, 1.0]), np.diag([1.0, 9.0]))
    b = GaussianStatistics(np.array([3.0, 1.0]), np.diag([4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(14.0, rel=1e-12)


def test_frechet_of_samples_tends_to_the_analytic_value(rng):
    a = gaussian_statistics(rng.normal([0, 0, 0], [1, 2, 3], size=(40_000, 3)))
    b = gaussian_statistics(rng.normal([1, 0, -2], [2, 2, 1], size=(40_000, 3)))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=0.02)  # a few standard errors of 40k samples


def test_frechet_agrees_with_the_matrix_square_root(rng):
    mix_a, mix_b = rng.normal(size=(2, 20, 20))
    a = gaussian_statistics(rng.normal(size=(200, 20)) @ mix_a)
    b = gaussian_statistics(rng.normal(size=(300, 20)) @ mix_b + 1)
    root = scipy.linalg.sqrtm(a.cov @ b.cov).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.cov + b.cov - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [2, 10, 100])  # far fewer images than dimensions, and more
def test_frechet_is_zero_for_equal_statistics_and_symmetric(rng, count):
    a = gaussian_statistics(rng.normal(size=(count, 40)))
    b = gaussian_statistics(rng.normal(size=(count, 40)) * 2 + 1)
    assert frechet_distance(a, a) < 1e-9
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 10


def test_frechet_with_fewer_images_than_dimensions_is_exact(rng):
    # 5-dimensional data rotated into 60 dimensions: rank-deficient covariances, the same distance as in 5 dimensions
    basis = np.linalg.qr(rng.normal(size=(60, 60)))[0][:5]
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 5)) * 1.5 + 0.5
    low = frechet_distance(gaussian_statistics(x), gaussian_statistics(y))
    high = frechet_distance(gaussian_statistics(x @ basis), gaussian_statistics(y @ basis))
    assert high == pytest.approx(low, rel=1e-9)


def test_frechet_of_identical_images_is_the_distance_of_the_means():
    a, b = np.zeros((4, 3)), np.full((4, 3), 2.0)
    assert frechet_distance(gaussian_statistics(a), gaussian_statistics(b)) == pytest.approx(12)


def test_kid_agrees_with_the_formula_written_as_loops(rng):
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(7, 5)) + 0.5

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 5 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (a, b) for i, j in itertools.permutations(range(7), 2)) / 42
    across = sum(kernel(x, y) for x in a for y in b) / 49
    mean, std = kid(a, b, subset_size=7, num_subsets=1)  # the one subset is everything, in another order
    assert mean == pytest.approx(within - 2 * across, rel=1e-10)
    assert std == 0


def test_kid_is_unbiased_and_rises_with_distance(rng):
    a, b = rng.normal(size=(2, 2000, 8))
    same, spread = kid(a, b, subset_size=100, num_subsets=60)
    # sets of 2000 bound what any number of subsets can average out: well within one subset's own spread
    assert abs(same) < 0.5 * spread
    near, far = (kid(a, b + shift, subset_size=100, num_subsets=20)[0] for shift in (0.5, 1.0))
    assert far > near > 10 * abs(same)


def test_kid_is_a_function_of_its_seed(rng):
    a, b = rng.normal(size=(2, 50, 4))
    first, again, other = (kid(a, b, subset_size=20, num_subsets=5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_precision_recall_agrees_with_brute_force(rng, monkeypatch):
    monkeypatch.setattr(precision_recall_module, "CHUNK", 7)  # several chunks, the last one short
    real, generated = rng.normal(size=(30, 3)), rng.normal(size=(25, 3)) * 0.6 + 0.4

    def share(queries, manifold):
        inside = 0
        for q in queries:
            for m in manifold:
                radius = sorted(np.linalg.norm(m - other) for other in manifold)[3]  # [0] is m itself
                if np.linalg.norm(q - m) <= radius:
                    inside += 1
                    break
        return inside / len(queries)

    precision, recall = precision_recall(real, generated)
    assert (precision, recall) == (share(generated, real), share(real, generated))
    assert 0 < recall < precision  # a narrower set is precise and covers little


def test_precision_recall_of_equal_and_of_disjoint_sets(rng):
    real = rng.normal(size=(20, 4))
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_mode_collapse_lowers_recall_only(rng):
    real = np.concatenate([rng.normal(size=(50, 2)), rng.normal(size=(50, 2)) + 50])
    precision, recall = precision_recall(real, rng.normal(size=(100, 2)) * 0.7)
    assert precision > 0.9
    assert 0.2 < recall <= 0.5


METRICS = {
    "frechet": lambda a, b: frechet_distance(gaussian_statistics(a), gaussian_statistics(b)),
    "kid": lambda a, b: kid(a, b, subset_size=2, num_subsets=1),
    "precision_recall": precision_recall,
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_bad_features_are_refused(metric, rng):
    good = rng.normal(size=(10, 4))
    with pytest.raises(BadInputError, match="too few images") as caught:
        metric(good, good[:1])
    assert caught.value.hint
    with pytest.raises(BadInputError, match="dimensions differ: 4 and 3") as caught:
        metric(good, good[:, :3])
    assert caught.value.hint
    with pytest.raises(BadInputError, match="shape"):
        metric(good[0], good)
    broken = good.copy()
    broken[[2, 5], 1] = np.nan, np.inf
    with pytest.raises(StageFailedError, match="2 of 10 images"):
        metric(good, broken)


def test_kid_refuses_subsets_it_cannot_draw(rng):
    features = rng.normal(size=(10, 4))
    for subset_size in (1, 11):
        with pytest.raises(BadInputError, match=f"subset_size out of range: {subset_size}"):
            kid(features, features, subset_size=subset_size)
    with pytest.raises(BadInputError, match="num_subsets"):
        kid(features, features, subset_size=5, num_subsets=0)
