"""`flatminima explain` as a user has it."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from flatminima.cli import main
from flatminima.explain import NormGrad, read_head, tilt_head
from flatminima.training.data.encode import encode
from flatminima.training.loader import loader
from flatminima.training.measuring import open_target
from flatminima.training.predictions import identity_of

RUN = ["--epochs", "3", "--no-pretrain", "--no-measure"]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    cnn = ["--model", "cnn"]
    for name, extra in (("a", cnn), ("b", [*cnn, "--lr", "0.01"]), ("mlp", ["--seed", "1"])):
        assert main(["finetune", *RUN, *extra, "--out", str(home / name)]) == 0
    return home


def read(path):
    return json.loads(path.read_text())


def test_two_runs_are_explained_where_they_disagree(runs, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    maps, plane = tmp_path / "maps.png", tmp_path / "plane.svg"
    code, printed, errors = run(
        capsys, "explain", runs / "a", runs / "b", "--images", "4", "--plot", maps, "--plane", plane
    )
    assert code == 0
    assert "are not predicted alike" in printed
    assert f"written to {runs / 'a/explain.json'}" in errors
    assert min(maps.stat().st_size, plane.stat().st_size) > 5000
    found = {name: read(runs / name / "explain.json") for name in "ab"}
    shown = {name: one["maps"]["images"] for name, one in found.items()}
    assert [row["id"] for row in shown["a"]] == [row["id"] for row in shown["b"]]
    assert len(shown["a"]) == 4
    for one, other in zip(shown["a"], shown["b"], strict=True):
        assert one["predicted"] != other["predicted"]
        picture = Image.open(io.BytesIO(base64.b64decode(one["map"])))
        assert picture.size == (64, 64)
    assert (runs / "a/explain.json").stat().st_size < 100_000


def test_the_numbers_are_those_of_the_library(runs, capsys):
    run(capsys, "explain", runs / "a", runs / "b", "--images", "2", "--layers", "features.[12]")
    found = read(runs / "a/explain.json")
    target = open_target(str(runs / "a"), {})
    data, built = target.prepared.data, target.prepared.built
    tilts = tilt_head(built.model, loader(encode(data.train, data, built.encoding), 100))
    assert found["head"]["mean_degrees"] == pytest.approx(tilts.mean_degrees, rel=1e-4)
    assert found["head"]["accuracy"] == pytest.approx(tilts.accuracy)
    assert found["head"]["pair_count"] == 45
    degrees = [one["deviation_angle"] for one in found["head"]["pairs"]]
    assert degrees == sorted(degrees, reverse=True)
    kept = read(runs / "a/predictions.json")
    right = np.equal(kept["label"], kept["predicted"]).mean()
    assert found["test_accuracy"] == pytest.approx(right)
    assert found["maps"]["layers"] == ["features.1", "features.2"]
    row = found["maps"]["images"][0]
    place = kept["id"].index(row["id"])
    assert row["predicted"] == kept["classes"][kept["predicted"][place]]
    entry = data.test.inputs[[identity_of(x) for x in data.test.inputs].index(row["id"])]
    image = torch.from_numpy(entry)[None]
    expected = NormGrad(built.model, "features.[12]").attribute(
        image, kept["predicted"][place], internal_batch_size=1
    )
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["map"])))).astype(int)
    assert picture.shape == (64, 64, 3)
    coloured = np.ptp(picture, axis=2)[::8, ::8]
    highest = np.unravel_index(int(expected.argmax()), (8, 8))
    assert coloured[highest] > 20, "where the map is highest there is colour"


def test_one_run_is_explained_on_what_it_gets_wrong(runs, capsys):
    code, printed, _ = run(capsys, "explain", runs / "a", "--images", "3")
    assert code == 0
    assert "are predicted wrongly" in printed
    for row in read(runs / "a/explain.json")["maps"]["images"]:
        assert row["label"] != row["predicted"]


def test_a_perceptron_is_explained_at_its_input_and_meta_saliency_differs(runs, capsys):
    run(capsys, "explain", runs / "mlp", "--images", "2")
    plain = read(runs / "mlp/explain.json")["maps"]
    assert plain["layers"] == ["input"]
    run(capsys, "explain", runs / "mlp", "--images", "2", "--meta-lr", "0.05")
    stepped = read(runs / "mlp/explain.json")["maps"]
    assert stepped["meta_lr"] == 0.05
    assert [row["id"] for row in stepped["images"]] == [row["id"] for row in plain["images"]]
    assert stepped["images"] != plain["images"]


def test_all_results_can_go_to_one_file_and_a_checkpoint_has_its_own(runs, capsys, tmp_path):
    out = tmp_path / "all.json"
    (runs / "b/explain.json").unlink(missing_ok=True)
    code, *_ = run(capsys, "explain", runs / "b", "--images", "0", "--out", out)
    assert code == 0
    assert not (runs / "b/explain.json").exists()
    assert read(out)["explanations"][str(runs / "b")]["maps"] is None
    run(capsys, "explain", runs / "b/checkpoints/last", "--images", "0")
    assert (runs / "b/explain-last.json").is_file()


def test_a_study_is_explained_in_its_runs_and_its_report_shows_it(capsys, tmp_path):
    pytest.importorskip("plotly")
    study = tmp_path / "study"
    methods = ["plain", "nso:sigma=0.05"]
    for method in methods:
        for seed in ("0", "1"):
            own = ["--perturb", method, "--seed", seed]
            place = study / method.replace(":", ",") / f"seed-{seed}"
            assert main(["finetune", *RUN, *own, "--out", str(place)]) == 0
    told = {"methods": methods, "seeds": [0, 1], "recipe": {}}
    (study / "study.json").write_text(json.dumps(told))
    code, printed, _ = run(capsys, "explain", study, "--images", "2")
    assert code == 0
    assert printed.count("tilted by") == 4
    first, second = (read(study / f"plain/seed-{seed}/explain.json") for seed in (0, 1))
    assert len(first["maps"]["images"]) == 2
    assert second["maps"] is None, "only runs of one seed share their test images"
    page = tmp_path / "page.html"
    assert main(["report", str(study), "--out", str(page)]) == 0
    text = page.read_text()
    assert "How heads are tilted" in text
    assert text.count("Where they look: ") == 2
    with pytest.raises(SystemExit):
        main(["explain"])
    code, _, errors = run(capsys, "explain", study, study / "plain/seed-0")
    assert code == 2
    assert "explain it alone" in errors


def test_data_that_are_no_images_have_no_maps(capsys, tmp_path):
    rows = ["a,b,label"]
    generator = np.random.default_rng(0)
    for i in range(80):
        rows.append(f"{generator.normal() + 3 * (i % 2):.3f},{generator.normal():.3f},c{i % 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = ["--data", tmp_path / "table.csv"]
    code, _, errors = run(capsys, "finetune", *data, *RUN, "--out", tmp_path / "run")
    assert code == 0, errors
    code, printed, _ = run(capsys, "explain", tmp_path / "run")
    assert code == 0
    assert "no maps: they are of images" in printed
    assert read(tmp_path / "run/explain.json")["head"]["pair_count"] == 1


def test_a_head_that_has_no_tilt_is_no_reason_to_stop(runs, capsys, monkeypatch):
    import flatminima.training.explaining as explaining

    def collapsed(*arguments, **options):
        head = read_head(*arguments, **options)
        return replace(head, features=0 * head.features)

    monkeypatch.setattr(explaining, "read_head", collapsed)
    code, printed, _ = run(capsys, "explain", runs / "mlp", "--images", "1")
    assert code == 0
    assert "the tilt of 5 cannot be measured: the means of the two classes are equal" in printed
    assert read(runs / "mlp/explain.json")["head"] is None


def test_a_run_that_predicts_no_classes_is_refused(capsys, tmp_path):
    place = tmp_path / "run"
    few = ["--epochs", "1", "--no-measure"]
    data = ["--data", "matrix-sensing(d=6;rank=1;measurements=40)"]
    code, _, errors = run(capsys, "finetune", *data, *few, "--out", place)
    assert code == 0, errors
    code, _, errors = run(capsys, "explain", place)
    assert code == 2
    assert "predicts no classes" in errors


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--saliency", "norm-gradd"], "did you mean 'norm-grad'"),
        (["--layers", "feature.1"], "did you mean 'features.1'"),
        (["--head", "heads"], "did you mean 'head'"),
        (["--head", "dropout"], "is a Dropout"),
        (["--images", "-1"], "images is -1"),
        (["--meta-lr", "-1"], "meta_lr is -1"),
        (["--plot", "maps.txt"], "--plot is maps.txt"),
    ],
)
def test_bad_input_is_one_line_and_code_2(runs, capsys, flags, words):
    code, _, errors = run(capsys, "explain", runs / "a", *flags)
    assert code == 2
    assert words in errors
    assert len(errors.strip().splitlines()) == 1


def test_targets_that_cannot_be_compared_are_refused(runs, capsys, tmp_path):
    code, _, errors = run(capsys, "explain", runs / "a", runs / "a")
    assert code == 2
    assert "given twice" in errors
    code, _, errors = run(capsys, "explain", tmp_path)
    assert code == 2
    assert "no run directory" in errors
    code, printed, _ = run(capsys, "explain", runs / "a", runs / "mlp", "--images", "2")
    assert code == 0, "runs of two seeds share some of their test images, or it is said"
    assert "test images" in printed or "no test image in common" in printed
