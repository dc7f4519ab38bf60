"""Oracles: the published estimates, a general optimiser, and labelers whose confusions are planted."""

import numpy as np
import pandas as pd
import pytest
from judgements import judged
from scipy import optimize

from workbench import WorkbenchError
from workbench.feedback.labelers import dawid_skene, labeler_reliability

# Dawid and Skene 1979, table 1: 45 patients, seen three times by the first anaesthetist and once by the other four
PATIENTS = """
    111-1111 333-4334 112-2122 222-3121 222-3222 222-3322 122-2111 333-3433 222-2223 232-2223 444-4444 222-3343
    111-1111 222-3212 121-1111 111-2111 111-1111 111-1111 222-2221 222-1322 222-2222 222-2221 222-3222 221-2222
    111-1111 111-1111 232-2222 111-1111 111-1111 112-1121 111-1111 333-3233 111-1111 222-2222 222-3232 433-4343
    221-2232 232-3233 333-3432 111-1111 111-1111 121-2111 232-2222 121-1111 222-2222
"""
# The estimates printed there: prevalence, and each anaesthetist's error rates, true classes 1 to 4 in rows
PREVALENCE = [0.40, 0.42, 0.11, 0.07]
ERROR_RATES = [
    [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]],
    [[0.83, 0.17, 0, 0], [0.05, 0.63, 0.31, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    [[1, 0, 0, 0], [0.11, 0.79, 0.11, 0], [0, 0.40, 0.20, 0.40], [0, 0, 0.67, 0.33]],
    [[0.94, 0.06, 0, 0], [0.05, 0.84, 0.10, 0], [0, 0, 0.80, 0.20], [0, 0, 0.33, 0.67]],
    [[1, 0, 0, 0], [0.16, 0.73, 0.11, 0], [0, 0.21, 0.79, 0], [0, 0, 0.33, 0.67]],
]
# and probabilities of patients' classes: all that are not sure, and some that are
POSTERIORS = {
    2: [0, 0, 0, 1],
    7: [0.98, 0.02, 0, 0],
    12: [0, 0, 1, 0],
    35: [0, 0.95, 0.05, 0],
    36: [0, 0, 0, 1],
    38: [0, 0.02, 0.98, 0],
}


def anaesthetists():
    rows = []
    for patient, text in enumerate(PATIENTS.split(), 1):
        first, others = text.split("-")
        rows += [(patient, 1, int(digit)) for digit in first]
        rows += [(patient, observer, int(digit)) for observer, digit in enumerate(others, 2)]
    return pd.DataFrame(rows, columns=["item_id", "labeler", "value"])


def simulated(generator, confusion, prevalence, *, items, missing=0.0):
    """Verdicts of labelers with these confusions (L, C, C), and the true classes (items,)."""
    truth = generator.choice(len(prevalence), size=items, p=prevalence)
    rows = [
        (i, f"l{k}", int(generator.choice(len(prevalence), p=table[truth[i]])))
        for i in range(items)
        for k, table in enumerate(confusion)
        if generator.random() >= missing
    ]
    return pd.DataFrame(rows, columns=["item_id", "labeler", "value"]), truth


def accurate(share, classes=2):
    """Confusion of a labeler who is right with this probability, and errs evenly."""
    return np.full((classes, classes), (1 - share) / (classes - 1)) + np.eye(classes) * (
        share - (1 - share) / (classes - 1)
    )


def test_the_anaesthetists_have_the_published_estimates():
    fit = dawid_skene(anaesthetists(), smoothing=0)
    assert np.abs(fit.prevalence - PREVALENCE).max() < 0.005
    assert np.abs(fit.confusion.to_numpy().reshape(5, 4, 4) - ERROR_RATES).max() < 0.0055  # 2 printed digits
    for patient, posterior in POSTERIORS.items():
        assert np.abs(fit.posterior.loc[patient] - posterior).max() < 0.005
    assert (fit.posterior.max(axis=1) < 0.99).sum() == 3


@pytest.mark.parametrize("smoothing", [0, 0.01, 1])
def test_the_likelihood_never_falls(smoothing):
    generator = np.random.default_rng(0)
    for frame in (anaesthetists(), simulated(generator, [accurate(0.6)] * 4, [0.5, 0.5], items=60, missing=0.3)[0]):
        history = dawid_skene(frame, smoothing=smoothing).log_likelihood
        assert len(history) > 3
        assert np.diff(history).min() > -1e-9


def test_the_fit_is_the_optimum_that_a_general_optimiser_finds():
    table = [accurate(0.9), accurate(0.7), [[0.9, 0.1], [0.4, 0.6]]]
    frame, _ = simulated(np.random.default_rng(1), table, [0.6, 0.4], items=80)
    said = frame.pivot(index="item_id", columns="labeler", values="value").to_numpy()

    def loss(logits):  # of class 1, and of each labeler saying 1 given class 0 and class 1
        chance = 1 / (1 + np.exp(-logits))
        sides = [1 - chance[0], chance[0]]
        for k in range(3):
            for c in (0, 1):
                one = chance[1 + 2 * k + c]
                sides[c] = sides[c] * np.where(said[:, k] == 1, one, 1 - one)
        return -np.log(sides[0] + sides[1]).sum()

    start = np.array([0.0] + [-1.0, 1.0] * 3)
    best = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-9})
    fit = dawid_skene(frame, smoothing=0, tolerance=1e-10)
    assert fit.log_likelihood[-1] == pytest.approx(-best.fun, abs=1e-6)
    assert fit.prevalence[1] == pytest.approx(1 / (1 + np.exp(-best.x[0])), abs=1e-3)
    assert fit.confusion[1].to_numpy() == pytest.approx(1 / (1 + np.exp(-best.x[1:])), abs=1e-3)


def test_planted_confusions_are_recovered():
    confusion = np.array(
        [
            accurate(0.9, 3),
            accurate(0.7, 3),
            [[0.8, 0.2, 0], [0.0, 0.3, 0.7], [0.1, 0, 0.9]],  # takes the second class for the third
            accurate(0.4, 3),
            accurate(0.8, 3),
        ]
    )
    prevalence = [0.5, 0.3, 0.2]
    frame, _ = simulated(np.random.default_rng(2), confusion, prevalence, items=2000, missing=0.2)
    fit = dawid_skene(frame)
    assert np.abs(fit.prevalence - prevalence).max() < 0.03
    assert np.abs(fit.confusion.to_numpy().reshape(5, 3, 3) - confusion).max() < 0.06
    assert fit.confusion.sum(axis=1).to_numpy() == pytest.approx(1)


def test_two_careful_labelers_outvote_three_who_guess():
    confusion = [accurate(0.95), accurate(0.95), accurate(0.5), accurate(0.5), accurate(0.55)]
    frame, truth = simulated(np.random.default_rng(3), confusion, [0.5, 0.5], items=500)
    posterior = dawid_skene(frame).posterior
    majority = (frame.groupby("item_id")["value"].mean() > 0.5).to_numpy()
    assert (posterior.idxmax(axis=1).to_numpy() == truth).mean() > (majority == truth).mean() + 0.1


def test_who_always_says_the_opposite_is_understood():
    confusion = [accurate(0.9), accurate(0.9), accurate(0.8), accurate(0.05)]
    frame, _ = simulated(np.random.default_rng(4), confusion, [0.5, 0.5], items=400)
    reliability = labeler_reliability(frame, resamples=20).set_index("labeler")["reliability"]
    assert reliability["l3"] == pytest.approx(0.05, abs=0.05)
    assert reliability["l0"] == pytest.approx(0.9, abs=0.05)


def test_the_interval_of_reliability_covers_the_planted_one():
    shares = [0.95, 0.9, 0.8, 0.7, 0.6]
    generator, inside = np.random.default_rng(5), []
    for seed in range(10):
        frame, _ = simulated(generator, [accurate(share) for share in shares], [0.6, 0.4], items=150)
        table = labeler_reliability(frame, seed=seed, resamples=100)
        inside += [low <= share <= high for share, low, high in zip(shares, table["low"], table["high"], strict=True)]
    assert 0.9 <= np.mean(inside) <= 1


def test_reliability_is_accuracy_weighted_by_prevalence():
    confusion = np.array([[[1.0, 0.0], [0.5, 0.5]], accurate(0.9), accurate(0.9), accurate(0.9)])
    frame, truth = simulated(np.random.default_rng(6), confusion, [0.8, 0.2], items=3000)
    row = labeler_reliability(frame, resamples=2).set_index("labeler").loc["l0"]
    right = (frame[frame["labeler"] == "l0"]["value"].to_numpy() == truth).mean()
    assert row["reliability"] == pytest.approx(right, abs=0.02)
    assert row["reliability"] == pytest.approx(0.9, abs=0.03)
    assert row["items"] == 3000


def test_the_order_of_rows_does_not_matter():
    frame = anaesthetists()
    first, second = dawid_skene(frame), dawid_skene(frame.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(first.posterior, second.posterior)
    one, other = (labeler_reliability(each, resamples=10, seed=1) for each in (frame, frame.iloc[::-1]))
    pd.testing.assert_frame_equal(one, other)


def test_judgements_are_taken_apart():
    rankings = {"ada": [[0], [1, 2]], "bob": [[0], [1], [2]], "cy": [[2], [0], [1]]}
    judgements = [
        judged(item, value, name, kind="ranking", size=3) for item in "12" for name, value in rankings.items()
    ]
    posterior = dawid_skene(pd.DataFrame(judgements)).posterior
    assert list(posterior.columns) == [0, 1, "tie"]
    assert posterior.loc[("1", "0-1")].idxmax() == 0
    assert len(posterior) == 6


def crowd(generator, *, verdicts, shares, per_item, ties=0.0):
    """Verdicts of labelers who are right with these probabilities, `per_item` on each item, some of them ties."""
    units, size = verdicts // per_item, len(shares)
    truth = generator.integers(2, size=units)
    who = np.argsort(generator.random((units, size)), axis=1)[:, :per_item]
    said = np.where(generator.random((units, per_item)) < np.array(shares)[who], truth[:, None], 1 - truth[:, None])
    said = np.where(generator.random(said.shape) < ties, "tie", said.astype(str))
    return pd.DataFrame(
        {"item_id": np.repeat(np.arange(units), per_item), "labeler": who.ravel(), "value": said.ravel()}
    )


@pytest.mark.parametrize(("verdicts", "per_item"), [(10_000, 2), (10_000, 3), (30_000, 3), (100_000, 3)])
def test_planted_accuracies_are_recovered_from_any_number_of_verdicts_with_ties_at_random(verdicts, per_item):
    shares = [0.74, 0.78, 0.82, 0.86, 0.9]
    frame = crowd(np.random.default_rng(verdicts), verdicts=verdicts, shares=shares, per_item=per_item, ties=0.1)
    fit = dawid_skene(frame)
    right = fit.confusion.to_numpy().reshape(5, 3, 3).diagonal(axis1=1, axis2=2) @ fit.prevalence.to_numpy()
    assert right == pytest.approx(0.9 * np.array(shares), abs=3 / (verdicts / 5) ** 0.5)
    assert fit.prevalence["tie"] < 0.01  # nobody needs that class: ties were given at random


def test_verdicts_that_do_not_determine_the_model_are_said_to_do_so():
    generator, shares = np.random.default_rng(0), [0.74, 0.78, 0.82, 0.86, 0.9]
    assert dawid_skene(crowd(generator, verdicts=3000, shares=shares, per_item=3)).caution == ""
    assert "No item has three" in dawid_skene(crowd(generator, verdicts=3000, shares=shares, per_item=2)).caution
    unsure = dawid_skene(crowd(generator, verdicts=10_000, shares=shares, per_item=3, ties=0.1)).caution
    assert "hardly tell classes apart: fits whose shares of a class differ by" in unsure


def test_a_single_class_is_sure():
    fit = dawid_skene(pd.DataFrame({"item_id": [1, 1], "labeler": ["ada", "bob"], "value": ["tie", "tie"]}))
    assert fit.posterior.loc[1, "tie"] == fit.prevalence["tie"] == 1
    assert (fit.confusion.to_numpy() == 1).all()


@pytest.mark.parametrize("smoothing", [0, 0.01])
def test_nothing_is_nan_where_a_labeler_never_saw_a_class(smoothing):
    rows = [(1, "a", 0), (1, "b", 0), (2, "a", 1), (2, "c", 1), (3, "b", 0)]
    fit = dawid_skene(pd.DataFrame(rows, columns=["item_id", "labeler", "value"]), smoothing=smoothing)
    assert fit.confusion.sum(axis=1).to_numpy() == pytest.approx(1)
    assert fit.posterior.sum(axis=1).to_numpy() == pytest.approx(1)


def test_a_labeler_with_one_item_has_no_interval():
    rows = [(i, name, i % 2) for i in range(6) for name in "ab"] + [(0, "c", 0)]
    table = labeler_reliability(pd.DataFrame(rows, columns=["item_id", "labeler", "value"]), resamples=10)
    assert table["labeler"].tolist() == ["a", "b"]
    assert table["items"].tolist() == [6, 6]


@pytest.mark.parametrize(
    ("rows", "words"),
    [([(1, "a", 0), (2, "a", 1), (2, "a", 1)], "1 labeler"), ([(1, "a", 0), (2, "b", 1)], "No item was judged by two")],
)
def test_tables_that_nothing_can_be_learnt_from_get_a_sentence(rows, words):
    with pytest.raises(WorkbenchError, match=words):
        dawid_skene(pd.DataFrame(rows, columns=["item_id", "labeler", "value"]))


def test_too_few_iterations_get_a_sentence():
    with pytest.raises(WorkbenchError, match="After 2 iterations"):
        dawid_skene(anaesthetists(), max_iterations=2)
