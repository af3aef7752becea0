"""Feature and optimisation measures against naive forms, and what a run says of its split."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddfed.config import Layer
from ddfed.errors import ConfigError
from ddfed.testing import TwinDomain, twin_task
from ddfed_federated.dissimilarity import gradient_dissimilarity, update_measures
from ddfed_federated.features import feature_heterogeneity, frechet, mean_gap
from ddfed_federated.methods import ServerContext
from ddfed_federated.partition import split
from ddfed_federated.probe import measured, measured_sets
from ddfed_federated.settings import resolve_simulate


def normal(rows, width, seed=0, shift=0.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_gaps_are_the_u_statistic_of_the_linear_kernel():
    # Nobody holds 1, and 3 has one row: no estimate without bias.
    features, owners = normal(20, 5), torch.tensor([0] * 6 + [2] * 7 + [3] + [4] * 6)
    held = [features[owners == k] for k in (0, 2, 4)]

    def naive(one, other):
        def inside(x):
            return sum(float(x[i] @ x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (
                len(x) * (len(x) - 1)
            )

        return inside(one) + inside(other) - 2 * float((one @ other.T).mean())

    wanted = sum(naive(held[i], held[j]) for i in range(3) for j in range(3) if i != j)
    assert mean_gap(features, owners, 5) == (pytest.approx(wanted), 6)
    assert mean_gap(features[:7], owners[:7], 5) == (0.0, 0)


def test_gaps_of_one_source_are_zero_on_average():
    found = [mean_gap(normal(12, 4, s), torch.tensor([0] * 4 + [1] * 8), 2)[0] / 2 for s in range(400)]
    error = np.std(found) / 20
    assert abs(np.mean(found)) < 4 * error < 0.5  # the biased form would give 4 / 4 + 4 / 8


@pytest.mark.parametrize("width", [3, 30])
def test_frechet_equals_the_form_with_matrix_roots(width):
    linalg = pytest.importorskip("scipy.linalg")
    one, other = normal(20, width), 1.5 * normal(17, width, 1, 0.4)
    means = [x.mean(0).numpy() for x in (one, other)]
    # A small ridge makes the root of a rank-deficient product exist numerically.
    covariances = [np.cov(x.numpy(), rowvar=False) + 1e-9 * np.eye(width) for x in (one, other)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    assert frechet(one, other) == pytest.approx(wanted, rel=1e-3)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, one + 2) == pytest.approx(4 * width)
    with pytest.raises(ConfigError, match="at least two rows"):
        frechet(one[:1], other)


def test_label_skew_alone_leaves_no_gap_within_classes():
    labels = torch.arange(600) % 3
    features = normal(600, 6) + 5 * torch.eye(6, dtype=torch.float64)[labels]
    by_label = (labels == 0).long() * (torch.arange(600) % 4 > 0)
    skewed = feature_heterogeneity(features, labels, by_label, 2)
    assert abs(skewed["feature_class_gap"]) < 0.05 < skewed["feature_mmd"]
    shifted = feature_heterogeneity(features + 2.0 * by_label[:, None], labels, by_label, 2)
    # Both clients hold class 0 alone together: a shift of 2 in 6 of 6 axes of variance 1 is a gap of 4.
    assert shifted["feature_class_gap"] == pytest.approx(4, rel=0.6)
    scaled = feature_heterogeneity(7 * features, labels, by_label, 2)
    assert scaled == {name: pytest.approx(value) for name, value in skewed.items()}


def test_what_cannot_be_estimated_is_none():
    alone = feature_heterogeneity(normal(3, 2), torch.zeros(3, dtype=torch.int64), torch.arange(3), 3)
    assert alone == {"feature_class_gap": None, "feature_mmd": None, "feature_frechet": None}
    flat = feature_heterogeneity(torch.ones(8, 2), torch.arange(8) % 2, torch.arange(8) // 4, 2)
    assert set(flat.values()) == {None}


def test_gradient_dissimilarity_is_its_definition():
    gradients, sizes = list(normal(4, 9)), [3, 1, 0, 6]
    p = torch.tensor(sizes) / 10
    wanted = sum(float(w * g.dot(g)) for w, g in zip(p, gradients)) / float(
        (p.double() @ torch.stack(gradients)).norm() ** 2
    )
    assert gradient_dissimilarity(iter(gradients), sizes) == pytest.approx(wanted)
    assert gradient_dissimilarity([gradients[0]] * 3, [1, 2, 3]) == pytest.approx(1)
    assert gradient_dissimilarity([gradients[0], -gradients[0]], [1, 1]) is None
    for wrong in ([1, 1, 1], [1] * 5):
        with pytest.raises(ConfigError, match="gradients"):
            gradient_dissimilarity(gradients, wrong)
    with pytest.raises(ConfigError, match="at least 0"):
        gradient_dissimilarity(gradients, [1, -1, 1, 1])


def test_updates_are_measured_pair_by_pair():
    updates = list(normal(4, 7))
    cosines = [float(torch.cosine_similarity(updates[i], updates[j], 0)) for i in range(4) for j in range(i + 1, 4)]
    found = update_measures([*updates, torch.zeros(7)])
    assert found["update_cosine"] == pytest.approx(np.mean(cosines))
    assert found["update_cosine_spread"] == pytest.approx(np.std(cosines))
    assert found["update_cosine_min"] == pytest.approx(min(cosines))
    assert found["client_drift"] == pytest.approx(np.mean([float(u.norm()) for u in updates] + [0]))
    assert update_measures([updates[0]])["update_cosine"] is None
    assert update_measures([])["client_drift"] is None


def twin_context(**federation):
    settings = resolve_simulate(
        [Layer("test", {"data": {"domain": "twin", "dataset": "blobs"}, "federation": {"clients": 4, **federation}})]
    ).settings
    task = twin_task(classes=4, per_class=60)
    return ServerContext.of(settings, TwinDomain(), task)


def parts(context, scheme, **options):
    labels = context.task.train.labels.numpy()
    return split(scheme, labels, 4, 4, np.random.default_rng(0), **options)


def test_each_kind_of_skew_shows_in_its_measure():
    plain = twin_context()
    even = measured(plain, parts(plain, "iid"))
    labels = measured(plain, parts(plain, "disjoint"))
    noisy = twin_context(skew="noise", skew_options={"sigma": 3.0})
    features = measured(noisy, parts(noisy, "iid"))
    assert labels["label_l1"] > 1 > even["label_l1"] == features["label_l1"]
    assert labels["feature_mmd"] > 10 * abs(even["feature_mmd"])
    assert labels["feature_class_gap"] is None  # no class has two holders
    assert features["feature_frechet"] > 2 * even["feature_frechet"]
    assert labels["gradient_dissimilarity"] > 1.5 * even["gradient_dissimilarity"] > 1.5
    assert even == measured(plain, parts(plain, "iid"))


def test_a_client_without_rows_does_not_disturb():
    context = twin_context()
    made = parts(context, "iid")
    empty = replace(
        made,
        parts=[np.concatenate(made.parts[:2]), np.zeros(0, dtype=np.int64), *made.parts[2:]],
        counts=np.stack([made.counts[:2].sum(0), np.zeros(4, dtype=np.int64), *made.counts[2:]]),
    )
    found = measured(context, empty)
    assert found["empty_clients"] == 1
    assert all(math.isfinite(value) for value in found.values())


def test_sets_are_measured_as_their_clients():
    context = twin_context()
    data, made = context.task.train, parts(context, "disjoint")
    rows = [torch.from_numpy(part[:10]) for part in made.parts]
    union = {
        "x": torch.cat([data.items(r) for r in rows]),
        "y": torch.cat([data.labels[r] for r in rows]),
        "clients": [k for k, r in enumerate(rows) for _ in r],
    }
    found = measured_sets(context, union, 4)
    assert found["label_l1"] == pytest.approx(1.5) and found["classes_held"] == 1
    assert found["feature_mmd"] == pytest.approx(measured(context, made)["feature_mmd"], rel=0.3)
    moved = dict(union, x=union["x"] + torch.tensor(union["clients"]).view(-1, 1, 1, 1))
    assert measured_sets(context, moved, 4)["feature_mmd"] > found["feature_mmd"]
