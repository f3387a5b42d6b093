"""The tables and the plot of docs/performance.md, from committed results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.study.numbers import difference, with_error

RESULTS = Path(__file__).parents[1] / "docs/results"
GOAL_CASES = ("resnet-18:32", "bert-23m:16")
RIVALS = {"NSO": "nso", "one-pass NSO": "nso-one-pass", "SAM": "sam"}
"""What a peer of each mathematics is held against."""

LIVE_CASES = {
    "ResNet, batch 32 of 64 x 64": "live meter, small ResNet",
    "BERT, batch 16 of 64 tokens": "live meter, small BERT",
}


def tables() -> dict[str, str]:
    """The content of each place in the page, by the place's name."""
    steps = _read("steps")
    return {
        "goals": goals(steps, _read("live-trace")),
        "steps": "\n".join(map(_case, steps.values())),
        "anatomy": "\n".join(_anatomy(case) for case in steps.values()),
        "draw ahead": _ahead(_read("draw-ahead")),
        "noise table on the digits": _compared(_read("noise-digits")),
        "ranks": _ranks(_read("ranks")),
    }


def goals(steps: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    """What was aimed at, and whether it was reached."""
    limits = {
        "nso": 2.06,
        "nso, noise='table'": 2.06,
        "nso-one-pass": 1.08,
        "nso-one-pass, noise='table'": 1.08,
        "sam": 2.06,
    }
    rows = []
    for key in GOAL_CASES:
        case = steps[key]
        found = case["contenders"]
        for name, most in limits.items():
            ratio = found[name]["wall"]["ratio"]
            rows.append(
                [
                    f"{name}, {case['title']}",
                    f"at most {most} x plain",
                    _ratio(found[name]["wall"]),
                    _met(ratio <= most),
                ]
            )
        for name, peer in found.items():
            if not peer["peer"]:
                continue
            ours = found[RIVALS[peer["mathematics"]]]
            own = RIVALS[peer["mathematics"]]
            part = ours["wall"]["ms"] / peer["wall"]["ms"]
            rows.append(
                [
                    f"{own} against {name}, {case['title']}",
                    "not slower",
                    f"{part:.3f} of its time",
                    _against(ours["wall"], peer["wall"]),
                ]
            )
            rows.append(
                [
                    f"{own} against {name}, {case['title']}",
                    "less memory",
                    f"{_mib(ours['peak_bytes'])} to {_mib(peer['peak_bytes'])} MiB",
                    _met(ours["peak_bytes"] < peer["peak_bytes"]),
                ]
            )
        for name in ("nso", "nso, memory='replay'"):
            copies = found[name]["copies"]
            rows.append(
                [
                    f"peak memory of {name}, {case['title']}",
                    "at most plain + 1 copy of W",
                    f"plain {copies:+.2f} copies",
                    _met(copies <= 1.005),
                ]
            )
    for key, title in LIVE_CASES.items():
        percent = live["cost"][key]["percent"]["default"]["median"]
        rows.append([title, "at most +1 % of a step", f"{percent:+.1f} %", _met(percent <= 1)])
    return _table(["what", "goal", "measured", ""], rows)


def _against(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    if ours["ms"] <= theirs["ms"]:
        return "met"
    overlap = ours["ci95"][0] <= theirs["ci95"][1]
    return "missed, within the spread" if overlap else "missed"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _case(case: Mapping[str, Any]) -> str:
    """A table of one network at one batch size."""
    rows = [
        [
            f"{name}{' (peer)' if row['peer'] else ''}",
            f"{row['wall']['ms']:,.0f}",
            "{:,.0f} to {:,.0f}".format(*row["wall"]["quartiles_ms"]),
            _ratio(row["wall"]),
            _ratio(row["cpu"]),
            f"{row['passes']:g} / {row['gradients']:.2g}",
            f"{row['page_faults']:,.0f}",
            _mib(row["peak_bytes"]),
            f"{row['copies']:+.2f}",
        ]
        for name, row in case["contenders"].items()
    ]
    head = [
        "method",
        "ms",
        "quartiles",
        "wall / plain",
        "CPU / plain",
        "calls / gradients",
        "page faults",
        "peak MiB",
        "copies of W over plain",
    ]
    title = (
        f"### {case['title']}, {case['samples']} samples\n\n{case['weights'] / 1e6:.1f} M weights, "
        f"{case['base']}, {case['threads']} threads, {case['rounds']} rounds.\n"
    )
    return f"{title}\n{_table(head, rows)}"


def _anatomy(case: Mapping[str, Any]) -> str:
    """Milliseconds of each part of a step."""
    methods = case["anatomy"]
    if not methods:
        return ""
    parts = list(dict.fromkeys(part for found in methods.values() for part in found))
    rows = [
        [part, *(f"{found[part]:,.1f}" if part in found else "" for found in methods.values())]
        for part in parts
    ]
    title = f"{case['title']}, {case['samples']} samples; ms"
    return _table([title, *methods], rows)


def _ahead(found: Mapping[str, Any]) -> str:
    rows = []
    for case in found.values():
        gain = difference(case["gain_ms"], case["gain_ci95"])
        name = f"{case['title']}, {case['samples']} samples"
        rows.append([name, *(f"{ms:.0f}" for ms in case["ms"].values()), gain])
    ways = list(next(iter(found.values()))["ms"])
    return _table(["ms", *ways, "won by drawing beside"], rows)


def _compared(study: Mapping[str, Any]) -> str:
    """Accuracies and traces beside normal noise and exact memory."""
    rows = []
    for method, found in study["methods"].items():
        row = [f"`{method}`"]
        for metric, scale in (("test_accuracy", 100), ("hessian_trace", 1)):
            numbers = found[metric]
            row.append(with_error(numbers["mean"], numbers["ci95"], scale))
            pair = study["paired"].get(method, {}).get(metric)
            row.append(difference(pair["difference"], pair["ci95"], scale) if pair else "")
        rows.append(row)
    head = ["method", "test accuracy (%)", "against the first", "Hessian trace", "likewise"]
    return _table(head, rows)


def _ranks(found: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['all_reduces']:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
        ]
        for name, row in found["methods"].items()
    ]
    return _table(["method", "all-reduces", "MB"], rows)


def _ratio(times: Mapping[str, Any]) -> str:
    if times["ratio"] == 1 and times["ci95"] == [1, 1]:
        return "1"
    return "{:.3f} [{:.3f}, {:.3f}]".format(times["ratio"], *times["ci95"])


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())
