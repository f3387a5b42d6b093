"""How large a report is and how long it takes to open; and pictures of one for the README.

    python benchmarks/report.py scale                      # docs/results/report.json
    python benchmarks/report.py pictures runs/demo         # docs/images, after `make demo`

Both need Chromium (`make browser`). The study of `scale` is made up, of 10 methods times 20 seeds
with 1000 logged steps each; opening is from the address to the figures of the first screen.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from flatminima.files import write_json, write_text
from flatminima.report import write_report
from flatminima.training.directory import environment

ROOT = Path(__file__).parents[1]
METHODS, SEEDS, STEPS, TESTED, OPENINGS = 10, 20, 1000, 1000, 7
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FIRST = "() => document.querySelector('[data-figure] .main-svg')"


@contextmanager
def browser() -> Iterator[Any]:
    path = next(p for name in ("chromium", "google-chrome") if (p := shutil.which(name)))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


def scale() -> None:
    with tempfile.TemporaryDirectory() as home, browser() as chromium:
        folder, page_file = Path(home) / "study", Path(home) / "report.html"
        make_up(folder)
        start = time.perf_counter()
        write_report([folder], page_file)
        made, opened = time.perf_counter() - start, []
        for _ in range(OPENINGS):
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            page.goto(page_file.as_uri())
            page.wait_for_function(FIRST)
            opened.append(time.perf_counter() - start)
            page.close()
        found = {
            "methods": METHODS,
            "seeds": SEEDS,
            "steps": STEPS,
            "openings": OPENINGS,
            "megabytes": page_file.stat().st_size / 1e6,
            "seconds_to_make": made,
            "seconds_to_open": {"median": statistics.median(opened), "largest": max(opened)},
        }
    write_json(ROOT / "docs/results/report.json", found)
    write_json(ROOT / "docs/results/report-environment.json", environment())
    print(json.dumps(found, indent=2))


def make_up(folder: Path) -> None:
    """Results files as runs write them, of numbers drawn at random."""
    random = np.random.default_rng(0)
    methods = [f"method-{i}" for i in range(METHODS)]
    common = {"data": "made-up"}
    write_json(
        folder / "study.json",
        {"methods": methods, "seeds": list(range(SEEDS)), "recipe": common},
    )
    for rank, method in enumerate(methods):
        for seed in range(SEEDS):
            accuracy = 0.6 + 0.02 * rank + 0.02 * random.standard_normal()
            place = folder / method / f"seed-{seed}"
            metrics = {
                "test_accuracy": accuracy,
                "test_loss": 1 - accuracy,
                "hessian_trace": 50 * random.uniform(0.5, 1),
                "gradients": float(STEPS),
            }
            result = {"task": "made-up", "method": method, "seed": seed, "metrics": metrics}
            write_json(place / "results.json", result)
            lines = (
                json.dumps({"step": s, "epoch": s / 50, "loss": 2 * math.exp(-s / 300) + 0.1})
                for s in range(1, STEPS + 1)
            )
            write_text(place / "metrics.jsonl", "\n".join(lines) + "\n")
            labels = np.arange(TESTED) % 10
            wrong = random.random(TESTED) > accuracy
            predicted = np.where(wrong, (labels + 1) % 10, labels)
            ids = [f"sample-{i}" for i in range(TESTED)]
            kept = {
                "classes": [str(i) for i in range(10)],
                "id": ids,
                "label": labels.tolist(),
                "predicted": predicted.tolist(),
                "confidence": [0.5] * TESTED,
                "examples": {ids[i]: {"text": "words " * 100} for i in np.flatnonzero(wrong)[:60]},
            }
            write_json(place / "predictions.json", kept)


def pictures(study: Path) -> None:
    images = ROOT / "docs/images"
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home, browser() as chromium:
        page_file = Path(home) / "report.html"
        write_report([study], page_file)
        for scheme in ("light", "dark"):
            page = chromium.new_page(
                viewport={"width": 1200, "height": 860}, color_scheme=scheme, device_scale_factor=1
            )
            page.goto(page_file.as_uri())
            page.wait_for_function(FIRST)
            page.wait_for_timeout(500)
            page.screenshot(path=images / f"report-{scheme}.png")
            page.close()
        page = chromium.new_page(viewport={"width": 1200, "height": 700})
        page.goto(page_file.as_uri())
        page.get_by_role("tab", name="surface").click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(4000)
        page.locator("#landscapes").screenshot(path=images / "report-landscapes.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("scale")
    parts.add_parser("pictures").add_argument("study", type=Path)
    arguments = parser.parse_args()
    scale() if arguments.part == "scale" else pictures(arguments.study)
