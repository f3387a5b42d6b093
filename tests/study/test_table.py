import json

import numpy as np
import pytest

from flatminima.study import markdown_table, rich_table, summarize
from flatminima.study.numbers import difference, p_value, plain, with_error

SEEDS = [0, 1, 2, 3, 4]


def study(gain, failed=(), drop=(), seeds=SEEDS, **other):
    def run(seed, shift):
        wobble = [0.011, -0.004, 0.002, 0.007, -0.013][seed]
        metrics = {
            "test_accuracy": 0.9 + wobble + shift * (1 + wobble),
            "test_loss": 0.4 + wobble,
            "hessian_trace": 1200.0 + 9000 * wobble,
            "gradients": 12800,
            "seconds_per_step": 0.0123 + wobble / 50,
            **other,
        }
        return {"metrics": metrics}

    runs = {
        method: {seed: run(seed, shift) for seed in seeds if (method, seed) not in drop}
        for method, shift in (("plain", 0.0), ("nso_k|2", gain))
    }
    return summarize("digits [small]", list(seeds), runs, failed)


def render(summary, width=200):
    console = pytest.importorskip("rich.console").Console(width=width, record=True, quiet=False)
    with console.capture() as capture:
        console.print(rich_table(summary))
    return capture.get()


def test_markdown_has_one_row_a_method_and_the_columns_there_are():
    lines = markdown_table(study(0.02)).splitlines()
    assert lines[0] == (
        "| method | test accuracy (%) | gain (points) | test loss | Hessian trace | gradients | "
        "ms per step |"
    )
    assert lines[1] == "| :-- | --: | --: | --: | --: | --: | --: |"
    assert lines[2].startswith(
        "| plain | 90.1 ± 1.2 | reference | 0.401 ± 0.012 | 1,205 ± 106 | 12,800 |"
    )
    assert lines[3].startswith(
        r"| nso\_k\|2 | 92.1 ± 1.2 | +2.001 [+1.978, +2.025], p = 0.062 \* |"
    )
    assert lines[4] == ""
    assert r"- \* the interval excludes 0." in lines
    assert any("at least 0.062 with so few pairs" in line for line in lines)


def test_a_table_of_json_is_the_same():
    summary = study(0.02)
    assert markdown_table(json.loads(json.dumps(summary))) == markdown_table(summary)


def test_a_tie_is_called_a_tie():
    text = markdown_table(study(0.0, drop=[("plain", 0)]))
    assert r"\*" not in text
    assert "No interval of a difference excludes 0" in text


def test_equal_differences_of_a_coarse_metric_are_not_certainty():
    runs = {
        "plain": {s: {"metrics": {"test_accuracy": 0.5 + s / 8}} for s in range(2)},
        "nso": {s: {"metrics": {"test_accuracy": 0.625 + s / 8}} for s in range(2)},
    }
    text = markdown_table(summarize("coarse", [0, 1], runs))
    assert "+12.5" in text
    assert r"\*" not in text


def test_a_loss_is_marked_too():
    assert r"-2.001 [-2.025, -1.978], p = 0.062 \*" in markdown_table(study(-0.02))


def test_failures_are_noted_below():
    failed = [
        {"method": "nso_k|2", "seed": 3, "error": "RuntimeError: out\nof memory"},
        {"method": "nso_k|2", "seed": 4, "error": "RuntimeError: out\nof memory"},
    ]
    summary = study(0.02, failed, drop=[("nso_k|2", 3), ("nso_k|2", 4), ("plain", 1)])
    text = markdown_table(summary)
    assert r"- nso\_k\|2: seeds 3, 4 failed: RuntimeError: out of memory" in text
    assert "- plain: seed 1 without a finite test accuracy" in text
    rendered = render(summary)
    assert "nso_k|2: seeds 3, 4 failed: RuntimeError: out of memory" in rendered


def test_a_method_that_always_failed_has_dashes():
    failed = [{"method": "nso_k|2", "seed": seed, "error": "no"} for seed in SEEDS]
    lines = markdown_table(study(0.0, failed, drop=[("nso_k|2", s) for s in SEEDS])).splitlines()
    assert lines[3] == r"| nso\_k\|2 | - | - | - | - | - | - |"


def test_one_seed_has_no_intervals():
    text = markdown_table(study(0.02, seeds=[0]))
    assert "±" not in text
    assert "One seed" in text
    assert "| +2" in text
    assert "p =" not in text


def test_without_accuracy_the_difference_is_in_the_loss():
    runs = {
        name: {s: {"metrics": {"test_loss": 0.3 + shift * (1 + s)}} for s in range(3)}
        for name, shift in (("plain", 0.0), ("nso", -0.01))
    }
    text = markdown_table(summarize("regression", [0, 1, 2], runs))
    assert "| method | test loss | loss difference |" in text
    assert "-0.020 [-0.045, +0.005], p = 0.25 |" in text


def test_of_a_regression_the_difference_is_in_the_absolute_error():
    runs = {
        name: {
            s: {"metrics": {"test_mae": 4.0 + shift * (1 + s), "test_loss": 0.3, "test_gmean": 2.0}}
            for s in range(3)
        }
        for name, shift in (("plain", 0.0), ("nso", -0.1))
    }
    text = markdown_table(summarize("ages", [0, 1, 2], runs))
    assert "| method | test MAE | MAE difference | test geometric mean | test loss |" in text
    assert "-0.20 [-0.45, +0.05], p = 0.25 |" in text


def test_a_study_without_known_metrics_lists_its_methods():
    summary = summarize("odd", [0, 1], {"plain": {0: {"metrics": {"x": 1.0}}}})
    assert "| plain |" in markdown_table(summary)


def test_the_terminal_shows_the_same_cells():
    summary = study(0.02)
    rendered = render(summary)
    for text in (
        "digits [small]",
        "nso_k|2",
        "[+1.978, +2.025]",
        "90.1 ± 1.2",
        "12,800",
        "p = 0.062 *",
    ):
        assert text in rendered
    assert "excludes 0" in rendered


@pytest.mark.parametrize(
    ("mean", "interval", "text"),
    [
        (None, None, "-"),
        (0.91234, None, "0.9123"),
        (12800.0, (12800.0, 12800.0), "12,800"),
        (1.0, (0.5, 1.5), "1.00 ± 0.50"),
        (12345.6, (11000.0, 13691.2), "12,346 ± 1,346"),
        (1.234e-5, (1.2e-5, 1.268e-5), "(1.234 ± 0.034)e-05"),
        (3e8, (2e8, 4e8), "(3.0 ± 1.0)e+08"),
        (0.0, (0.0, 0.0), "0"),
        (0.1, (0.1 - 1e-17, 0.1 + 1e-17), "0.1000"),
        (1.5e-7, None, "1.500e-07"),
    ],
)
def test_digits_follow_the_error(mean, interval, text):
    assert with_error(mean, interval) == text


def test_a_rounded_zero_has_no_sign():
    assert difference(-1e-9, (-0.5, 0.5)) == "0.00 [-0.50, +0.50]"
    assert difference(0.0, (0.0, 0.0)) == "0.00 [0.00, 0.00]"


def test_p_values_and_plain_numbers():
    assert p_value(0.0625) == "p = 0.062"
    assert p_value(1e-5) == "p < 0.001"
    assert p_value(1.0) == "p = 1"
    assert plain(-0.0123461) == "-0.01235"
    assert plain(1234.56) == "1,235"


@pytest.mark.parametrize("seed", range(20))
def test_numbers_of_any_size_have_a_form(seed):
    generator = np.random.default_rng(seed)
    mean, half = generator.normal(size=2) * 10.0 ** generator.integers(-30, 30, size=2)
    half = abs(half)
    assert with_error(mean, (mean - half, mean + half))
    assert difference(mean, (mean - half, mean + half))
