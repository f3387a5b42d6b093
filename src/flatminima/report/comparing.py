"""What the numbers of a study say: means, differences, and who won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flatminima.report.reading import Study
from flatminima.study.numbers import difference, p_value, plain, with_error
from flatminima.study.statistics import PairedDifference, mean_ci, paired


@dataclass(frozen=True)
class Metric:
    """How a metric is called and shown.

    Attributes:
        key: Its name in the results files.
        label: Its name for people, with the unit.
        scale: What its values are multiplied with to be in that unit.
        better: +1 where more is better, -1 where less is, 0 where neither.
    """

    key: str
    label: str
    scale: float = 1.0
    better: int = 0


METRICS = (
    Metric("test_recall", "test recall (%)", 100, 1),
    *(
        Metric(f"test_{key}_at_{k}", f"{words} @{k} (%)", 100, 1)
        for key, words in (("image_to_text", "image to text"), ("text_to_image", "text to image"))
        for k in (1, 5, 10)
    ),
    Metric("test_accuracy_harmonic", "base and novel (%)", 100, 1),
    Metric("test_accuracy_base", "base (%)", 100, 1),
    Metric("test_accuracy_novel", "novel (%)", 100, 1),
    Metric("test_accuracy", "test accuracy (%)", 100, 1),
    Metric("test_mae", "test MAE", 1, -1),
    Metric("test_error", "test error", 1, -1),
    Metric("test_gmean", "test geometric mean of errors", 1, -1),
    *(
        Metric(f"test_{key}_{group}", f"test {words}, {group}-shot", 1, -1)
        for key, words in (("mae", "MAE"), ("gmean", "geometric mean"))
        for group in ("many", "medium", "few")
    ),
    Metric("test_loss", "test loss", 1, -1),
    Metric("validation_recall", "validation recall (%)", 100, 1),
    Metric("validation_accuracy", "validation accuracy (%)", 100, 1),
    Metric("validation_mae", "validation MAE", 1, -1),
    Metric("train_loss", "training loss"),
    Metric("hessian_trace", "Hessian trace", 1, -1),
    Metric("top_eigenvalue", "top eigenvalue", 1, -1),
    Metric("perturbation_gap", "perturbation gap", 1, -1),
    Metric("gap_over_prediction", "gap / (sigma²/2 Tr H)"),
    Metric("gradients", "gradients", 1, -1),
    Metric("seconds_per_step", "ms per step", 1000, -1),
    Metric("peak_bytes", "peak memory (MB)", 1e-6, -1),
)
"""The metrics a report shows, in this order."""

KNOWN = {metric.key: metric for metric in METRICS}


JUDGES = (
    "test_recall",
    "test_accuracy_harmonic",
    "test_accuracy",
    "test_mae",
    "test_error",
    "test_loss",
    "validation_recall",
    "validation_accuracy",
    "validation_mae",
)


def judged_by(study: Study) -> Metric:
    """The metric a study is about."""
    for key in JUDGES:
        if key in study.values:
            return KNOWN[key]
    if "train_loss" in study.values:
        return replace(KNOWN["train_loss"], better=-1)
    return Metric(next(iter(study.values)), next(iter(study.values)).replace("_", " "))


def mean_text(values: Mapping[int, float], metric: Metric) -> str:
    """`84.96 ± 0.89`, in the metric's unit; a hyphen where there is no value."""
    if not values:
        return with_error(None, None)
    mean = mean_ci(list(values.values()))
    return with_error(mean.mean, mean.interval, metric.scale)


def difference_text(pair: PairedDifference, metric: Metric) -> str:
    """`+7.6 [+6.6, +8.6]`, in the metric's unit."""
    return difference(pair.difference, pair.t_interval, metric.scale)


def compared(
    study: Study, method: str, reference: str, metric: Metric, level: float = 0.95
) -> PairedDifference | None:
    """The paired difference of two methods; None where they share no seed."""
    by_method = study.values.get(metric.key, {})
    values, others = by_method.get(method, {}), by_method.get(reference, {})
    if not values.keys() & others.keys():
        return None
    return paired(values, others, level=level)


def excludes_zero(pair: PairedDifference | None) -> bool:
    """Whether a difference is shown: its interval is there, has a width, and leaves out 0."""
    if pair is None or pair.t_interval is None:
        return False
    low, high = pair.t_interval
    return low * high > 0 and high - low > 1e-9 * abs(low)


@dataclass(frozen=True)
class Card:
    """A number of the first screen.

    Attributes:
        label: What it is.
        value: The number.
        detail: A line below it.
    """

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The answer of the first screen.

    Attributes:
        headline: Who won, by how much.
        sentences: What must be known with it.
        cards: Its numbers.
        winner: The best method by the mean.
    """

    headline: str
    sentences: Sequence[str]
    cards: Sequence[Card]
    winner: str


def verdict(study: Study) -> Verdict:
    """Who won, by how much, whether it is significant, what it cost, how flat it is.

    The best of several methods is chosen by the same numbers that it is judged by, so intervals of
    differences hold jointly for all comparisons (Bonferroni).
    """
    metric = judged_by(study)
    by_method = {m: v for m, v in study.values[metric.key].items() if v}
    means = {method: mean_ci(list(v.values())).mean for method, v in by_method.items()}
    sign = metric.better or -1
    winner = max(means, key=lambda method: sign * means[method])
    sure = ", 95 % interval" if len(by_method[winner]) > 1 else ""
    cards = [Card(metric.label, mean_text(by_method[winner], metric), f"{winner}{sure}")]
    reference = study.reference if study.reference in means else next(iter(means))
    sentences: list[str] = []
    if len(means) == 1:
        headline = f"{winner}: {metric.label} {mean_text(by_method[winner], metric)}"
        sentences.append("One method: there is nothing to compare it with.")
    else:
        headline = _contest(study, metric, winner, reference, means, sentences, cards)
    seeds = max(len(v) for v in by_method.values())
    if seeds == 1:
        sentences.append("One seed: there are no intervals, and a difference may be chance.")
    short = [f"{m} ({len(v)})" for m, v in by_method.items() if len(v) < seeds]
    if short:
        sentences.append(f"Of {seeds} seeds some methods have fewer: {', '.join(short)}.")
    cards += _cost(study, winner, reference) + _flatness(study, winner, reference)
    if study.failed:
        sentences.append(f"{len(study.failed)} runs failed; see the end of this page.")
    return Verdict(headline, sentences, cards, winner)


def _contest(
    study: Study,
    metric: Metric,
    winner: str,
    reference: str,
    means: Mapping[str, float],
    sentences: list[str],
    cards: list[Card],
) -> str:
    comparisons = len(means) - 1
    level = 1 - 0.05 / comparisons
    unit = "points" if metric.scale == 100 else metric.label
    jointly = f" jointly for {comparisons} comparisons" if comparisons > 1 else ""
    pairs = {m: compared(study, m, winner, metric, level) for m in means if m != winner}
    told = {m: pair for m, pair in pairs.items() if pair is not None and pair.t_interval}
    ties = [m for m, pair in told.items() if not excludes_zero(pair)]
    if winner == reference:
        headline = f"No method is better than {reference} on the mean"
        sign = metric.better or -1
        second = max((m for m in means if m != winner), key=lambda method: sign * means[method])
        gap = compared(study, second, winner, metric, level)
        if gap is not None and gap.t_interval is not None:
            sentences.append(
                f"The next, {second}, differs from it by {difference_text(gap, metric)} {unit} "
                f"over {gap.samples} paired seeds, a 95 % interval{jointly}."
            )
    else:
        gain = compared(study, winner, reference, metric, level)
        if gain is None:
            headline = f"{winner} is best, on other seeds than {reference}'s"
        else:
            words = f"{difference(gain.difference, None, metric.scale)} {unit} over {reference}"
            shown = excludes_zero(gain)
            leaders = ", ".join([winner, *ties])
            if gain.t_interval is None:
                headline = f"{winner}: {words}, on one seed, which shows nothing yet"
            elif not shown:
                headline = f"No gain over {reference} is shown"
            elif ties:
                headline = f"{leaders} lead: {words}"
            else:
                headline = f"{winner} wins: {words}"
            if not shown and gain.t_interval is not None:
                sentences.append(f"The best on the mean is {winner}, with {words}.")
            if gain.t_interval is not None:
                text = difference_text(gain, metric)
                cards.append(Card(f"gain over {reference}", text, f"{unit}, 95 %{jointly}"))
                sentences.append(
                    f"The difference is {text} {unit} over {gain.samples} paired seeds, a 95 % "
                    f"interval{jointly}; {p_value(gain.p_value)} by sign flips, uncorrected."
                )
    if ties:
        costs = []
        for method in ties:
            ratio = _ratio(study.values.get("gradients", {}), method, winner)
            costs.append(method if ratio is None else f"{method} ({ratio:.3g} x its gradients)")
        sentences.append(f"Not distinguished from {winner}: {', '.join(costs)}.")
    return headline


def _cost(study: Study, winner: str, reference: str) -> list[Card]:
    cards = []
    gradients, times = study.values.get("gradients", {}), study.values.get("seconds_per_step", {})
    if gradients.get(winner):
        ratio = _ratio(gradients, winner, reference)
        count = plain(mean_ci(list(gradients[winner].values())).mean)
        if winner == reference or ratio is None:
            cards.append(Card("gradients", count, winner))
        else:
            cards.append(Card("gradients", f"{ratio:.3g} x {reference}", f"{count} a run"))
    if winner != reference and times.get(winner) and times.get(reference):
        own, other = (mean_ci(list(times[m].values())).mean for m in (winner, reference))
        detail = f"{1000 * own:.3g} ms against {1000 * other:.3g} ms"
        cards.append(Card("time of a step", f"{own / other:.2f} x", detail))
    return cards


def _ratio(values: Mapping[str, Mapping[int, float]], method: str, other: str) -> float | None:
    """How many times as large a metric is; None where one of the two is missing or 0."""
    if not values.get(method) or not values.get(other):
        return None
    above, below = (mean_ci(list(values[m].values())).mean for m in (method, other))
    return above / below if below else None


def _flatness(study: Study, winner: str, reference: str) -> list[Card]:
    metric = KNOWN["hessian_trace"]
    traces = study.values.get(metric.key, {})
    if not traces.get(winner):
        return []
    detail = f"{winner}, smaller is flatter"
    if winner != reference and traces.get(reference):
        detail = f"{reference}: {mean_text(traces[reference], metric)}; smaller is flatter"
    return [Card(metric.label, mean_text(traces[winner], metric), detail)]
