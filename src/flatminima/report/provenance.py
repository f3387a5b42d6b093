"""The section of origins: what was run, where, how to run it again, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flatminima.report.blocks import Block, Cell, Code, Section, Table, Text
from flatminima.report.reading import Run, Study


def provenance(study: Study) -> Section:
    """How to run it again, on what it ran, and what is missing."""
    blocks: list[Block] = []
    if study.common:
        blocks.append(Code("The study's recipe", _study_recipe(study), "recipe.yaml"))
        again = "flatminima compare --recipe recipe.yaml --out runs/again"
        blocks.append(Code("To run it again, with the recipe above", again))
    else:
        for run in study.all_runs():
            if run.recipe:
                blocks.append(Code(f"Recipe of {run.folder}", run.recipe, "recipe.yaml"))
        if blocks:
            again = "flatminima finetune --recipe recipe.yaml --out runs/again"
            blocks.append(Code("To run one again, with its recipe above", again))
    machines = _machines(study)
    if machines is not None:
        blocks.append(machines)
    data = next((run.data for run in study.all_runs() if run.data), None)
    if data:
        blocks.append(_data(data))
    if study.failed:
        blocks.append(_failures(study))
    if study.notes:
        blocks.append(Text([f"Note: {note}" for note in study.notes]))
    return Section("provenance", "Where this comes from", blocks)


def _study_recipe(study: Study) -> str:
    """YAML; of JSON's scalars all are YAML's too."""
    seeds = sorted(study.planned or study.seeds)
    lines = [f"perturb: {json.dumps(study.methods)}", f"seeds: {len(seeds)}"]
    if seeds:
        lines.append(f"seed: {seeds[0]}")
    lines += [f"{k}: {json.dumps(v)}" for k, v in study.common.items() if v is not None]
    return "\n".join(lines) + "\n"


def _machines(study: Study) -> Table | None:
    """Each environment that runs had, once."""
    found: dict[str, list[Run]] = {}
    for run in study.all_runs():
        if run.environment:
            found.setdefault(json.dumps(run.environment, sort_keys=True), []).append(run)
    if not found:
        return None
    columns = [_flat(json.loads(text)) for text in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    counts = [f"{len(runs)} runs" if len(runs) > 1 else "1 run" for runs in found.values()]
    rows = [[Cell(n, n), *(Cell(c.get(n, "-"), c.get(n, "-")) for c in columns)] for n in names]
    return Table("Machine and versions", ["", *counts], rows)


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    packages = environment.get("packages")
    own = {k: v for k, v in environment.items() if k != "packages"}
    told = {**own, **(packages if isinstance(packages, Mapping) else {})}
    return {str(name): str(value) for name, value in told.items() if value is not None}


def _data(data: Mapping[str, Any]) -> Table:
    rows = []
    for part in ("train", "validation", "test", "source"):
        found = data.get(part)
        if isinstance(found, Mapping) and found.get("count"):
            label = "pretraining" if part == "source" else part
            count = found["count"]
            origin = str(found.get("origin", ""))
            sorted_by = float(count) if isinstance(count, int) else None
            rows.append([Cell(label, label), Cell(str(count), sorted_by), Cell(origin, origin)])
    noise = data.get("label_noise")
    notes = []
    if isinstance(noise, Mapping) and noise.get("changed"):
        notes.append(
            f"Label noise: {noise.get('redrawn')} training labels drawn anew, "
            f"{noise['changed']} of them changed."
        )
    if data.get("fingerprint"):
        notes.append(f"Fingerprint {data['fingerprint']}, of the first run.")
    return Table(f"Data: {data.get('name', '')}", ["part", "samples", "origin"], rows, notes)


def _failures(study: Study) -> Table:
    rows = []
    for run in study.failed:
        told = [str(run.get(name, "")) for name in ("method", "seed", "error")]
        rows.append([Cell(text, text) for text in told])
    return Table("Failed runs", ["method", "seed", "error"], rows)
