"""The tables of docs/performance-of-measuring.md, from docs/results/measure.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OURS, SLOWEST = "flatminima", "PyHessian"


def networks_table(found: Mapping[str, Any]) -> str:
    lines = [
        "| network | parameters | samples, batches | test accuracy | loss | trace | one gradient |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for name, result in found.items():
        lines.append(
            f"| {name} | {result['parameters']} | {result['samples']}, {result['batches']} "
            f"| {100 * result['accuracy']:.1f} % | {result['loss']:.3g} | {result['trace']:.4g} "
            f"| {1000 * result['gradient_seconds']['median']:.1f} ms |"
        )
    return _table(lines)


def trace_table(found: Mapping[str, Any]) -> str:
    lines = [
        "| network, error | library | method | products | gradients | seconds | to ours |",
        "| :-- | :-- | :-- | --: | --: | --: | --: |",
    ]
    for name, result in found.items():
        for row in result["trace_rows"]:
            ours = row["libraries"][OURS]
            for library, entry in row["libraries"].items():
                cells = [f"{name}, {100 * row['target']:g} %", library, entry["method"]]
                if entry["seconds"] is None:
                    cells += ["more than tried", "", "", ""]
                else:
                    mark = "\\*" if entry["scaled"] else ""
                    cells += [
                        str(entry["products"]),
                        str(entry["gradients"]),
                        _seconds(entry["seconds"]) + mark,
                        _ratio(entry, ours),
                    ]
                lines.append(f"| {' | '.join(cells)} |")
    return _table(lines)


def stop_table(found: Mapping[str, Any]) -> str:
    lines = [
        "| network | rule | products | seconds | error |",
        "| :-- | :-- | --: | --: | --: |",
    ]
    for name, result in found.items():
        for rule, entry in result["stop_rules"].items():
            lines.append(
                f"| {name} | {rule} | {entry['products']:g} | {_seconds(entry['seconds'])} "
                f"| {100 * entry['error']:.1f} % |"
            )
    return _table(lines)


def eigen_table(found: Mapping[str, Any]) -> str:
    lines = [
        "| network, eigenvalues | library | method, setting | products | gradients | seconds "
        "| to ours | error |",
        "| :-- | :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for name, result in found.items():
        for k, block in result["eigenvalues"].items():
            ours = _reached(block["libraries"][OURS])
            for library, entry in block["libraries"].items():
                settings = {entry["reached"]: "", entry["default"]: " (default)"}
                for setting, note in settings.items():
                    if setting is None:
                        continue
                    row = entry["tried"].get(f"{setting:g}")
                    if row is None:
                        continue
                    wrong = " not reached" if row["error"] > 1e-3 else ""
                    cells = [
                        f"{name}, {k}",
                        library,
                        f"{entry['method']} {setting:g}{note}",
                        f"{row['products']:g}",
                        f"{row['gradients']:g}",
                        _seconds(row["seconds"]),
                        _ratio(row, ours) if ours else "",
                        f"{100 * row['error']:.2g} %{wrong}",
                    ]
                    lines.append(f"| {' | '.join(cells)} |")
    return _table(lines)


def memory_table(found: Mapping[str, Any]) -> str:
    tasks = list(dict.fromkeys(task for result in found.values() for task in result["memory"]))
    lines = ["| | " + " | ".join(found) + " |", "| :-- |" + " --: |" * len(found)]
    for task in tasks:
        cells = [
            "refused" if size is None else f"{size / 1e6:.0f} MB"
            for size in (result["memory"].get(task) for result in found.values())
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return _table(lines)


def product_table(found: Mapping[str, Any]) -> str:
    lines = ["| | " + " | ".join(found) + " |", "| :-- |" + " --: |" * len(found)]
    libraries = list(
        dict.fromkeys(x for result in found.values() for x in result["product_errors"])
    )
    for library in libraries:
        errors = [f"{result['product_errors'][library]:.1g}" for result in found.values()]
        lines.append(f"| {library} | {' | '.join(errors)} |")
    return _table(lines)


def goals_table(found: Mapping[str, Any]) -> str:
    """What was aimed at, and what came out."""
    lines = ["| goal | network | measured | met |", "| :-- | :-- | --: | :-- |"]
    for name, result in found.items():
        precise = next(r for r in result["trace_rows"] if r["target"] == 0.01)["libraries"]
        many = result["eigenvalues"]["20"]["libraries"]
        for goal, least, ours, other in (
            ("trace to 1 %: PyHessian's time / ours", 8, precise[OURS], precise[SLOWEST]),
            (
                "20 eigenvalues: PyHessian's time / ours",
                10,
                _reached(many[OURS]),
                _reached(many[SLOWEST]) or _last(many[SLOWEST]),
            ),
        ):
            ratio = other["seconds"]["median"] / ours["seconds"]["median"]
            lines.append(
                f"| {goal} at least {least} | {name} | {ratio:.1f} | {_met(ratio >= least)} |"
            )
        worst, where = min(_to_best_rival(result))
        lines.append(
            f"| never slower than the best rival: its time / ours | {name} "
            f"| {worst:.2f} ({where}) | {_met(worst >= 1)} |"
        )
        memory = result["memory"]
        allowed = memory["training step"] + 4 * 10 * 4 * result["parameters"]
        ours = memory["flatminima, trace"]
        lines.append(
            f"| memory at most a training step and the probe block, {allowed / 1e6:.0f} MB "
            f"| {name} | {ours / 1e6:.0f} MB | {_met(ours <= allowed)} |"
        )
    return _table(lines)


def _to_best_rival(result: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """Of each row, the best rival's time to ours."""
    blocks = [(f"trace to {100 * r['target']:g} %", r["libraries"]) for r in result["trace_rows"]]
    for k, block in result["eigenvalues"].items():
        reached = {x: _reached(entry) for x, entry in block["libraries"].items()}
        blocks.append((f"{k} eigenvalues", {x: row for x, row in reached.items() if row}))
    for name, libraries in blocks:
        others = [
            entry["seconds"]["median"]
            for library, entry in libraries.items()
            if library != OURS and entry["seconds"]
        ]
        if others:
            yield min(others) / libraries[OURS]["seconds"]["median"], name


def _reached(entry: Mapping[str, Any]) -> Any:
    return None if entry["reached"] is None else entry["tried"][f"{entry['reached']:g}"]


def _last(entry: Mapping[str, Any]) -> Any:
    """The run that came closest, where none was right."""
    return list(entry["tried"].values())[-1]


def _ratio(entry: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    return f"{entry['seconds']['median'] / ours['seconds']['median']:.2g}"


def _seconds(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2g} ({spread['low']:.2g} to {spread['high']:.2g})"


def _met(yes: bool) -> str:
    return "yes" if yes else "**no**"


def _table(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


TABLES = {
    "goals": goals_table,
    "networks": networks_table,
    "trace": trace_table,
    "stop rules": stop_table,
    "eigenvalues": eigen_table,
    "memory": memory_table,
    "products": product_table,
}
"""By their names on the page."""
