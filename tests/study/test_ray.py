"""The same jobs on a Ray of this machine."""

import json
from pathlib import Path

import pytest

from flatminima.cli import main
from flatminima.errors import InputError
from flatminima.study import Job, run_jobs

pytest.importorskip("ray")

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _targets_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def test_jobs_run_their_files_come_back_and_one_fails_alone(tmp_path):
    jobs = [Job(f"job {x}", tmp_path / f"job-{x}", {"x": x}) for x in range(3)]
    jobs.append(Job("bad", tmp_path / "bad", {"how": "kill"}))
    seen = []
    outcomes = run_jobs(
        jobs[:3],
        "job_targets:square",
        ray="local",
        progress=lambda _, done, total: seen.append((done, total)),
    )
    assert [outcome.results()["square"] for outcome in outcomes] == [0, 1, 4]
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert seen[-1] == (3, 3)
    assert "squaring 2" in (jobs[2].directory / "log.txt").read_text()
    again = run_jobs(jobs[:3], "job_targets:square", ray="local")
    assert [outcome.status for outcome in again] == ["skipped"] * 3
    [bad, good] = run_jobs(
        [jobs[3], Job("good", tmp_path / "good", {})], "job_targets:misbehave", ray="local"
    )
    assert (bad.status, good.status) == ("failed", "finished")
    assert "died" in bad.error
    assert (tmp_path / "bad" / "error.txt").exists()


def test_a_study_on_ray_gives_the_numbers_of_one_without(tmp_path, capsys):
    study = ["compare", "--perturb", "plain,nso", "--seeds", "1", "--epochs", "1"]
    study += ["--no-pretrain", "--no-measure", "--no-keep-checkpoints"]
    assert main([*study, "--out", str(tmp_path / "here")]) == 0
    assert main([*study, "--out", str(tmp_path / "ray"), "--ray", "local"]) == 0
    here, there = (
        json.loads((tmp_path / where / "nso/seed-0/results.json").read_text())["metrics"]
        for where in ("here", "ray")
    )
    for name in ("test_accuracy", "test_loss", "train_loss"):
        assert here.get(name) == there.get(name)


def test_what_cannot_be(tmp_path):
    job = Job("job", tmp_path / "job", {"x": 1})
    with pytest.raises(InputError, match="leave it out with --ray"):
        run_jobs([job], "job_targets:square", workers=1, ray="local")
    with pytest.raises(InputError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        run_jobs([job], "job_targets:square", ray="127.0.0.1:1")
