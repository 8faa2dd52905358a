"""The figures against cases computed by hand, and the properties that their definitions promise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.evaluation.metrics import (
    area_under_roc,
    average_precision,
    brier_score,
    expected_calibration_error,
    figures,
    latency,
    macro,
    mcnemar_p,
    precision_recall_points,
    reliability,
    roc_points,
    threshold_for_fpr,
    wilson_interval,
)

# Scores in sixteenths: many ties, and no rounding in sums.
ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 16).map(lambda n: n / 16)), min_size=1, max_size=40)
MIXED = ROWS.filter(lambda rows: 0 < sum(label for label, _ in rows) < len(rows))


def columns(rows: list[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([label for label, _ in rows], bool), np.array([score for _, score in rows], np.float64)


class TestFigures:
    def test_a_set_by_hand(self) -> None:
        """Two of three unsafe rows flagged, one of four safe: each figure is what pencil and paper give."""
        labels = [True, True, True, False, False, False, False]
        scores = [0.9, 0.7, 0.2, 0.8, 0.3, 0.1, 0.0]
        found = figures(labels, scores, [score >= 0.5 for score in scores])
        assert (found.rows, found.unsafe) == (7, 3)
        assert found.recall == pytest.approx(2 / 3)
        assert found.fpr == pytest.approx(1 / 4)
        assert found.precision == pytest.approx(2 / 3)
        assert found.f1 == pytest.approx(2 / 3)
        # Falling thresholds: .9 1/1, .8 1/2, .7 2/3, .3 2/4, .2 3/5: steps of recall at .9, .7 and .2.
        assert found.auprc == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
        # Pairs in which the unsafe row is above: 4 of .9, 3 of .7, 2 of .2, of 12.
        assert found.auroc == pytest.approx(9 / 12)
        assert found.brier == pytest.approx((0.01 + 0.09 + 0.64 + 0.64 + 0.09 + 0.01 + 0.0) / 7)

    def test_one_class_alone_has_no_figure_of_two(self) -> None:
        """What needs both classes is None, never 0 or 1."""
        safe = figures([False, False], [0.1, 0.9], [False, True])
        assert safe.fpr == 0.5
        assert [safe.recall, safe.recall_low, safe.precision, safe.f1, safe.auprc, safe.auroc] == [None] * 6
        unsafe = figures([True], [0.9], [True])
        assert unsafe.recall == 1.0
        assert [unsafe.fpr, unsafe.f1, unsafe.auprc, unsafe.auroc] == [None] * 4

    def test_no_row_has_no_figure(self) -> None:
        """An empty set is not perfect."""
        found = figures([], [], []).to_dict()
        assert {name: value for name, value in found.items() if value is not None} == {"rows": 0, "unsafe": 0}

    def test_unequal_lengths_are_an_error(self) -> None:
        """A row that lost its score is not silently left out."""
        with pytest.raises(ValueError, match="equal lengths, got 2, 1 and 2"):
            figures([True, False], [0.5], [True, True])

    def test_the_mean_over_sets_skips_sets_without_the_figure(self) -> None:
        """A set of safe rows takes part in the mean FPR and not in the mean recall."""
        means = macro(
            [figures([True, False], [0.9, 0.1], [True, False]), figures([False, False], [0.9, 0.1], [True, False])]
        )
        assert means["recall"] == 1.0
        assert means["fpr"] == 0.25
        assert macro([])["recall"] is None


class TestCurves:
    @given(MIXED)
    def test_auroc_is_the_share_of_pairs_in_order(self, rows: list[tuple[bool, float]]) -> None:
        """The area is the Mann-Whitney statistic, ties counted half."""
        labels, scores = columns(rows)
        pairs = [(u, s) for u in scores[labels] for s in scores[~labels]]
        expected = sum(1.0 if u > s else 0.5 if u == s else 0.0 for u, s in pairs) / len(pairs)
        assert area_under_roc(labels, scores) == pytest.approx(expected)

    @given(MIXED)
    def test_average_precision_is_its_definition(self, rows: list[tuple[bool, float]]) -> None:
        """The sum over thresholds of the step in recall times the precision there, thresholds one by one."""
        labels, scores = columns(rows)
        area, before = 0.0, 0.0
        for threshold in sorted(set(scores.tolist()), reverse=True):
            flagged = scores >= threshold
            recall = (labels & flagged).sum() / labels.sum()
            area += (recall - before) * (labels & flagged).sum() / flagged.sum()
            before = recall
        assert average_precision(labels, scores) == pytest.approx(area)

    @given(MIXED, st.randoms())
    def test_no_figure_depends_on_the_order_of_rows(self, rows: list[tuple[bool, float]], random: object) -> None:
        """Rows with equal scores stand or fall together."""
        shuffled = list(rows)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        one, other = (
            figures([label for label, _ in r], [s for _, s in r], [s >= 0.5 for _, s in r]) for r in (rows, shuffled)
        )
        assert one.to_dict() == pytest.approx(other.to_dict())

    @given(MIXED)
    def test_curves_rise_from_corner_to_corner(self, rows: list[tuple[bool, float]]) -> None:
        """ROC goes from (0, 0) to (1, 1); recall ends at 1; neither ever falls."""
        roc = roc_points(*columns(rows))
        pr = precision_recall_points(*columns(rows))
        assert roc is not None
        assert pr is not None
        assert (roc[0], roc[-1], pr[-1][0]) == ((0.0, 0.0), (1.0, 1.0), 1.0)
        for curve in (roc, pr):
            assert all(a[0] <= b[0] for a, b in pairwise(curve))

    def test_a_perfect_ranking_has_area_one(self) -> None:
        """Both areas are 1 where every unsafe row is above every safe one, and AUROC is 0 the other way round."""
        labels, scores = np.array([True, True, False]), np.array([0.9, 0.8, 0.1])
        assert (area_under_roc(labels, scores), average_precision(labels, scores)) == (1.0, 1.0)
        assert area_under_roc(~labels, scores) == 0.0


class TestCalibration:
    def test_a_case_by_hand(self) -> None:
        """Three rows in the bin at .2 with one unsafe, one row at 1.0 that is unsafe: 3/4 |1/3 - .22| + 0."""
        labels, scores = np.array([True, False, False, True]), np.array([0.2, 0.21, 0.25, 1.0])
        assert expected_calibration_error(labels, scores) == pytest.approx(0.75 * (1 / 3 - 0.22))
        assert brier_score(labels, scores) == pytest.approx((0.64 + 0.0441 + 0.0625 + 0) / 4)

    @given(ROWS)
    def test_the_bins_hold_every_row_once(self, rows: list[tuple[bool, float]]) -> None:
        """Bins partition the rows, 0 and 1 included."""
        labels, scores = columns(rows)
        assert sum(one.rows for one in reliability(labels, scores)) == len(rows)

    @given(st.lists(st.booleans(), min_size=1))
    def test_a_classifier_that_knows_is_calibrated(self, labels: list[bool]) -> None:
        """Scores equal to the labels have no error of either kind."""
        known = np.array(labels, bool)
        assert expected_calibration_error(known, known.astype(float)) == 0.0
        assert brier_score(known, known.astype(float)) == 0.0


class TestThreshold:
    @given(MIXED, st.floats(0, 1))
    def test_it_keeps_the_target_and_is_the_lowest_that_does(
        self, rows: list[tuple[bool, float]], target: float
    ) -> None:
        """The rate at the threshold is within the target; at any lower score it is not."""
        labels, scores = columns(rows)

        def rate(threshold: float) -> float:
            return float((~labels & (scores >= threshold)).sum() / (~labels).sum())

        found = threshold_for_fpr(labels.tolist(), scores.tolist(), target)
        keeping = [score for score in scores.tolist() if rate(score) <= target]
        assert found == (min(keeping) if keeping else None)

    def test_without_safe_rows_there_is_none(self) -> None:
        """A false-positive rate of nothing cannot be kept."""
        assert threshold_for_fpr([True], [0.5], 0.05) is None


class TestWilson:
    def test_a_published_case(self) -> None:
        """81 of 263: .2553 to .3662 (Newcombe, Statistics in Medicine 17, 1998, table I)."""
        low, high = wilson_interval(81, 263)
        assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))

    @given(st.integers(0, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
    def test_it_holds_the_share_within_zero_and_one(self, case: tuple[int, int]) -> None:
        """The ends are probabilities on either side of the share; of nothing there is none."""
        hits, total = case
        low, high = wilson_interval(hits, total)
        if total == 0:
            assert (low, high) == (None, None)
        else:
            assert low is not None
            assert high is not None
            assert 0.0 <= low <= hits / total <= high <= 1.0


class TestMcNemar:
    @pytest.mark.parametrize(
        ("better", "worse", "p"), [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (1, 5, 14 / 64), (5, 1, 14 / 64)]
    )
    def test_cases_by_hand(self, better: int, worse: int, p: float) -> None:
        """Twice the binomial tail of the lesser side, at most 1, the same for both directions."""
        assert mcnemar_p(better, worse) == pytest.approx(p)

    def test_thousands_of_rows_do_not_overflow(self) -> None:
        """Half to the power of 5000 is no float; the test is still a probability."""
        assert mcnemar_p(2400, 2600) == pytest.approx(math.erfc(199 / math.sqrt(2 * 5000)), rel=1e-2)
        assert mcnemar_p(0, 5000) == 0.0


def test_latency_percentiles_are_interpolated() -> None:
    """Of 0..100 ms the median is 50 and the 99th percentile 99; of no message there is none."""
    found = latency([float(n) for n in range(101)])
    assert found is not None
    assert (found.messages, found.p50_ms, found.p99_ms) == (101, 50.0, 99.0)
    assert latency([]) is None
