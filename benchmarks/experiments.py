"""Keeps what an experiment found, and writes docs/experiments.md from all that was kept.

    flatminima run recipes/paper/few-shot.yaml
    python benchmarks/experiments.py keep runs/few-shot
    python benchmarks/experiments.py page          # also by `make readme`
    python benchmarks/experiments.py draw NAME     # the picture of a kept table again

Kept are the numbers, docs/results/experiment-NAME.json, and a picture beside it. The page has what
the recipe says under `about`, its command, the picture, the table, and the verdict.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flatminima.files import read_json, write_json, write_text
from flatminima.study import markdown_table, mean_ci
from flatminima.study.numbers import difference, with_error
from flatminima.study.vary_plot import MARKERS, PALETTE, WORDS, draw

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import flatness  # noqa: E402, modules beside this one
import rates  # noqa: E402
import rows_picture  # noqa: E402

RESULTS, RECIPES, PAGE = ROOT / "docs/results", ROOT / "recipes/paper", ROOT / "docs/experiments.md"
DRAWN = ("test_accuracy", "test_loss", "hessian_trace")
ALONG = ("test_loss", "hessian_trace", "perturbation_gap")
"""What is drawn of a setting's values, and of the epochs of runs, where a recipe does not say."""


def keep(folder: Path) -> None:
    """Copy the numbers of a finished experiment, and draw them."""
    name = folder.name
    if (folder / "vary.json").is_file():
        found = read_json(folder / "vary.json")
        figure = RESULTS / f"experiment-{name}.svg"
        _deterministic()
        if len(found["grid"]) == 1:
            draw(found, figure, _about(name).get("shows", DRAWN))
    else:
        found = {"summary": read_json(folder / "results.json")}
        if along := _along(folder, _about(name).get("along", ALONG)):
            found["along"] = along
            _draw_along(along, RESULTS / f"experiment-{name}.svg")
        if name == "rates":
            found["rates"] = rates.kept(folder)
        redraw(name, found)
    write_json(RESULTS / f"experiment-{name}.json", found)
    environment = next(folder.rglob("environment.json"))
    write_json(RESULTS / f"experiment-{name}-environment.json", read_json(environment))


def redraw(name: str, found: dict[str, Any]) -> None:
    """Draw a kept comparison of two methods or more that has no picture of its own."""
    if "points" not in found and "along" not in found and len(found["summary"]["methods"]) > 1:
        _deterministic()
        shown = _about(name).get("shows", DRAWN)
        rows_picture.draw(found["summary"], RESULTS / f"experiment-{name}.svg", shown)


def _about(name: str) -> dict[str, Any]:
    """What a recipe says of its experiment."""
    about: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["about"]
    return about


MOST = 120
"""Points of a curve that are kept."""


def _along(folder: Path, metrics: Sequence[str]) -> dict[str, Any]:
    """Means over seeds of what was measured along the runs, with 95 % intervals."""
    found: dict[str, Any] = {}
    for method in read_json(folder / "study.json")["methods"]:
        runs = []
        for run in sorted((folder / method.replace(":", ",")).glob("seed-*")):
            lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            runs.append({r["epoch"]: r for r in lines if all(m in r for m in metrics)})
        epochs = sorted(set(runs[0]).intersection(*runs))
        if not epochs:
            return {}
        if len(epochs) > MOST:
            ranks = np.geomspace(1, len(epochs), MOST).round().astype(int)
            epochs = [epochs[rank - 1] for rank in sorted(set(ranks.tolist()))]
        found[method] = {"epoch": epochs}
        for metric in metrics:
            means = [mean_ci([run[epoch][metric] for run in runs]) for epoch in epochs]
            found[method][metric] = {
                "mean": [mean.mean for mean in means],
                "ci95": [mean.interval for mean in means],
            }
    return found


LOGARITHMIC = {"test_error", "validation_squared_gradient"}


def _draw_along(along: dict[str, Any], file: Path) -> None:
    _deterministic()
    import matplotlib.pyplot as plt

    metrics = [metric for metric in next(iter(along.values())) if metric != "epoch"]
    size = (13 if len(metrics) > 1 else 7, 3.6)
    figure, panels = plt.subplots(
        1, len(metrics), figsize=size, layout="constrained", squeeze=False
    )
    for metric, ax in zip(metrics, panels[0], strict=True):
        for index, (method, values) in enumerate(along.items()):
            means, intervals = values[metric]["mean"], values[metric]["ci95"]
            color = PALETTE[index]
            marker = MARKERS[index] if len(means) <= 30 else ""
            line = {"color": color, "marker": marker, "label": method, "markersize": 4}
            ax.plot(values["epoch"], means, **line)
            low, high = zip(*intervals, strict=True)
            ax.fill_between(values["epoch"], low, high, color=color, alpha=0.15, linewidth=0)
        ax.set(xlabel="epoch", ylabel=WORDS.get(metric, metric.replace("_", " ")))
        if metric in LOGARITHMIC:
            wide = values["epoch"][-1] >= 100 * values["epoch"][0]
            ax.set(xscale="log" if wide else "linear", yscale="log")
    panels[0, 0].legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def _deterministic() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flatminima"


FLATTER = """
## How much flatter

**The paper**: NSO's Hessian trace is lower by 15.8 % and its largest eigenvalue by 9.7 % than
those of methods that reduce sharpness (the earlier version of the paper: 17.7 % and 12.8 %).

The same of the studies here that measured both: NSO less the others, in percent of them, by seed;
their mean is over the methods of the study, the flattest is the one that is so on the mean over
seeds. How flat a method ends is set by its strength: in `methods-digits` each is at the one best
for validation on other seeds, in `images-glyphs` at the one best for validation on half of the
seeds, in `images-glyphs-noise` at that of `images-glyphs`, in `few-shot-glyphs` at one chosen at
260 samples; in the other studies SAM is at one that was not tuned. The paper's eigenvalue is, in
its code, a sum over layers; ours is the largest of the Hessian.

**Verdict**: the trace in the same direction against their mean, but not against each of them; the
eigenvalue in one study of three. At tuned strengths NSO's trace is 8 % below the mean of nine
methods of the field on digits, and 53 % and, with label noise, 42 % below that of five on letters,
each with 0 outside the interval. Its eigenvalue is 35 % lower on letters with label noise, 11 %
lower without, with 0 in the interval, and 28 % higher on digits. The mean on digits is high by
bSAM and USAM: there SAM, Friendly SAM and LookSAM have lower traces than NSO (it is 11, 13 and
29 % above them), ASAM and m-SAM tie, and seven of the nine have lower eigenvalues. On letters no
method has a lower trace, ASAM's ties on clean labels; ASAM's eigenvalue is lower there, those of
SAM, USAM and RSAM tie, and with label noise SAM's does. Where NSO is lower elsewhere by more than
the paper says, SAM was not tuned, but for `few-shot-glyphs` at 260 samples; nor was it on the
rendered scenes, where its trace and eigenvalue are the lower ones (NSO: 20 and 51 % above them).
"""


ORDER = ("matrix", "rates", "gap", "curves", "learning-rate", "epochs", "batch-size", "images")
ORDER += ("text", "clip", "rationales", "combined", "few-shot", "glad")
"""How the page goes through the experiments, by how their names begin."""


def page() -> str:
    """The page: what the recipes say, and what was found."""
    names = sorted((recipe.stem for recipe in RECIPES.glob("*.yaml")), key=_place)
    found = {name: RESULTS / f"experiment-{name}.json" for name in names}
    here = [name for name in names if found[name].is_file()]
    parts = [
        "# The paper's experiments\n",
        "Written by `make readme` from the recipes in `recipes/paper` and the numbers in "
        "`docs/results`; edit those. Each experiment is one command, `--small` runs the same path "
        "in seconds to minutes. Of the paper's data ChestX-ray14 (many labels to an image) and "
        "DomainNet's noisy labels have no recipe here. What the paper says is told as far as we "
        "know it: its tables could not be read. ± and [low, high] are 95 % Student's t intervals "
        "over seeds; differences are paired by seed, so tables tell apart what "
        "intervals of pictures, which are not, may not. Times per step were taken while the "
        "machine did other work too, and order nothing; docs/performance.md has those that do.\n",
        "| experiment | verdict |\n| :-- | :-- |",
        *(f"| {_link(name)} | {_line(_about(name)['verdict'])} |" for name in here),
        f"| [{len(names) - len(here)} others](#not-run-here) | not run here: most need data |\n",
    ]
    for name in here:
        parts += _section(name, read_json(found[name]))
    parts += [FLATTER.strip() + "\n", flatness.table(RESULTS)]
    parts.append("## Not run here\n")
    for name in names:
        if name not in here:
            about = _about(name)
            parts += _beginning(name, "###")
            parts.append(f"**Here**: not run: it needs {about['needs'].strip()}.\n")
    return "\n".join(parts)


def _place(name: str) -> tuple[int, str]:
    begins = (i for i, begin in enumerate(ORDER) if name.startswith(begin))
    return next(begins, len(ORDER)), name


def _link(name: str) -> str:
    """To the section, as GitHub names it."""
    title = _about(name)["title"]
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return f"[{title}](#{kept.replace(' ', '-')})"


def _line(verdict: str) -> str:
    """What a verdict begins with, its first sentence."""
    return verdict.strip().partition(". ")[0].rstrip(".")


def _beginning(name: str, level: str) -> list[str]:
    """What an experiment is for, its command, and what the paper says of it."""
    about = _about(name)
    return [
        f"{level} {about['title']}\n",
        f"{about['purpose'].strip()}\n",
        f"```bash\nflatminima run recipes/paper/{name}.yaml\n```\n",
        f"**The paper**: {about['paper'].strip()}\n",
    ]


def _section(name: str, found: dict[str, Any]) -> list[str]:
    """An experiment that was run: picture, table and verdict."""
    about = _about(name)
    parts = _beginning(name, "##")
    if (RESULTS / f"experiment-{name}.svg").is_file():
        parts.append(f"![{about['title']}](results/experiment-{name}.svg)\n")
    if "rates" in found:
        parts.append(rates.table(found["rates"]))
    elif "summary" in found:
        parts.append(markdown_table(found["summary"]))
    else:
        parts.append(_varied(found, about.get("shows", DRAWN)[0]))
    return [*parts, f"**Verdict**: {about['verdict'].strip()}\n"]


def _varied(found: dict[str, Any], metric: str) -> str:
    """A row for each method, a column for each value: the metric, and its difference."""
    points = found["points"]
    scale = 100 if metric.endswith("accuracy") else 1
    fields = list(found["grid"])
    by = " and ".join(field.replace("_", " ") for field in fields)
    header = [f"{WORDS.get(metric, metric.replace('_', ' '))}, by {by}"]
    values = [[point["at"][field] for field in fields] for point in points]
    header += [", ".join(v if isinstance(v, str) else f"{v:g}" for v in of) for of in values]
    lines = [f"| {' | '.join(header)} |", "| :-- |" + " --: |" * len(points)]
    reference = points[0]["summary"]["reference"]
    for method in points[0]["summary"]["methods"]:
        cells = []
        for point in points:
            summary = point["summary"]
            if method == reference:
                entry = summary["methods"][method][metric]
                cells.append(with_error(entry["mean"], entry["ci95"], scale))
            else:
                entry = summary["paired"][method][metric]
                cells.append(difference(entry["difference"], entry["ci95"], scale))
        name = method if method == reference else f"{method} - {reference}"
        lines.append(f"| {' | '.join([name, *cells])} |")
    seeds = len(points[0]["summary"]["seeds"])
    return "\n".join([*lines, "", f"{seeds} seeds.", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("keep").add_argument("folder", type=Path)
    parts.add_parser("page")
    parts.add_parser("draw").add_argument("name")
    arguments = parser.parse_args()
    if arguments.part == "keep":
        keep(arguments.folder)
    elif arguments.part == "draw":
        redraw(arguments.name, read_json(RESULTS / f"experiment-{arguments.name}.json"))
    write_text(PAGE, page())
