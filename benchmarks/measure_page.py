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
        trace = f"{result['trace']:.4g}" if "trace" in result else ""
        lines.append(
            f"| {name} | {result['parameters']} | {result['samples']}, {result['batches']} "
            f"| {100 * result['accuracy']:.1f} % | {result['loss']:.3g} | {trace} "
            f"| {1000 * result['gradient_seconds']['median']:.1f} ms |"
        )
    return _table(lines)


def trace_table(found: Mapping[str, Any]) -> str:
    lines = [
        "| network, error | library | method | products | gradients | seconds | to ours |",
        "| :-- | :-- | :-- | --: | --: | --: | --: |",
    ]
    for name, result in found.items():
        for row in result.get("trace_rows", []):
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
        for rule, entry in result.get("stop_rules", {}).items():
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
        for k, block in result.get("eigenvalues", {}).items():
            ours = _reached(block["libraries"][OURS])
            for library, entry in block["libraries"].items():
                settings = {entry["reached"]: "", entry["default"]: " (default)"}
                for setting, note in settings.items():
                    if setting is None:
                        continue
                    row = entry["tried"].get(f"{setting:g}")
                    if row is None:
                        continue
                    error = f"{100 * row['error']:.2g} %"
                    if library == SLOWEST and k != "1" and "which" not in entry:
                        error = "not checked"
                    elif row["error"] > 1e-3:
                        error += " not reached"
                    cells = [
                        f"{name}, {k}",
                        library,
                        f"{entry['method']} {setting:g}{note}",
                        f"{row['products']:g}",
                        f"{row['gradients']:g}",
                        _seconds(row["seconds"]),
                        _ratio(row, ours) if ours else "",
                        error,
                    ]
                    lines.append(f"| {' | '.join(cells)} |")
    return _table(lines)


def memory_table(found: Mapping[str, Any]) -> str:
    measured = {name: result["memory"] for name, result in found.items() if "memory" in result}
    tasks = list(dict.fromkeys(task for memory in measured.values() for task in memory))
    lines = ["| | " + " | ".join(measured) + " |", "| :-- |" + " --: |" * len(measured)]
    for task in tasks:
        cells = [
            "refused" if size is None else f"{size / 1e6:.0f} MB"
            for size in (memory.get(task) for memory in measured.values())
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
        for goal, measured, met in _goals(result):
            lines.append(f"| {goal} | {name} | {measured} | {met} |")
    return _table(lines)


def _goals(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What it is, what came out and whether it is met, of the parts that were measured."""
    if "trace_rows" in result:
        precise = next(r for r in result["trace_rows"] if r["target"] == 0.01)["libraries"]
        ratio = _times(precise[SLOWEST], precise[OURS])
        yield "trace to 1 %: PyHessian's time / ours at least 8", f"{ratio:.0f}", _met(ratio >= 8)
    if "eigenvalues" in result:
        many = result["eigenvalues"]["20"]["libraries"]
        ours, other = _reached(many[OURS]), _reached(many[SLOWEST])
        goal = "20 eigenvalues: PyHessian's time / ours at least 10"
        if other is not None:
            ratio = _times(other, ours)
            yield goal, f"{ratio:.1f}", _met(ratio >= 10)
        else:
            ratios = [_times(row, ours) for row in many[SLOWEST]["tried"].values()]
            measured = f"{min(ratios):.1f} to {max(ratios):.0f}, never at 0.1 %"
            yield goal, measured, "yes" if min(ratios) >= 10 else "not shown"
    if rows := list(_to_best_rival(result)):
        worst, where = min(rows)
        goal = "never slower than the best rival: the least of its times / ours"
        yield goal, f"{worst:.2f} ({where})", _met(worst >= 1)
    if "memory" in result:
        memory = result["memory"]
        allowed = memory["training step"] + 4 * 10 * 4 * result["parameters"]
        ours = memory["flatminima, trace"]
        goal = f"memory at most a training step and the probe block, {allowed / 1e6:.0f} MB"
        yield goal, f"{ours / 1e6:.0f} MB", _met(ours <= allowed)


def _met(yes: bool) -> str:
    return "yes" if yes else "**no**"


def _times(other: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    return float(other["seconds"]["median"] / ours["seconds"]["median"])


def _to_best_rival(result: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """Of each row, the best rival's time to ours."""
    rows = result.get("trace_rows", [])
    blocks = [(f"trace to {100 * row['target']:g} %", row["libraries"]) for row in rows]
    for k, block in result.get("eigenvalues", {}).items():
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


def _ratio(entry: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    return _two_digits(_times(entry, ours))


def _seconds(spread: Mapping[str, float]) -> str:
    median, low, high = (_two_digits(spread[name]) for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _two_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


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
