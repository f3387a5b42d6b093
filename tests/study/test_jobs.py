import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flatminima.errors import InputError
from flatminima.study import Job, run_jobs

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _targets_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def make(tmp_path, *payloads):
    return [Job(f"job {i}", tmp_path / f"job-{i}", payload) for i, payload in enumerate(payloads)]


def run(jobs, function, **settings):
    settings.setdefault("workers", 1)
    return run_jobs(jobs, f"job_targets:{function}", **settings)


def test_every_job_runs_once_in_its_directory(tmp_path):
    jobs = make(tmp_path, *({"x": x} for x in range(5)))
    outcomes = run(jobs, "square", workers=2)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 5
    assert [outcome.results()["square"] for outcome in outcomes] == [0, 1, 4, 9, 16]
    assert [outcome.name for outcome in outcomes] == [job.name for job in jobs]
    record = json.loads((jobs[3].directory / "job.json").read_text())
    assert record == {"name": "job 3", "payload": {"x": 3}}
    log = (jobs[3].directory / "log.txt").read_text()
    assert log.splitlines() == ["squaring 3", "a warning"]


def test_a_worker_lives_for_many_jobs_and_is_another_process(tmp_path):
    outcomes = run(make(tmp_path, *({"x": x} for x in range(4))), "square")
    pids = {outcome.results()["pid"] for outcome in outcomes}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_jobs_start_in_the_order_given(tmp_path):
    outcomes = run(make(tmp_path, {}, {}, {}, {}), "order")
    starts = [outcome.results()["started"] for outcome in outcomes]
    assert starts == sorted(starts)


def test_nothing_to_do():
    assert run([], "square") == []


def test_finished_jobs_are_not_run_again(tmp_path):
    jobs = make(tmp_path, {"x": 1}, {"x": 2})
    run(jobs[:1], "square")
    again = run(jobs, "square")
    assert [outcome.status for outcome in again] == ["skipped", "finished"]
    assert (jobs[0].directory / "calls").read_text() == "x"


def test_half_written_results_are_run_again(tmp_path):
    jobs = make(tmp_path, {"x": 2})
    run(jobs, "square")
    (jobs[0].directory / "results.json").write_text('{"square": ')
    assert run(jobs, "square")[0].status == "finished"
    assert (jobs[0].directory / "calls").read_text() == "xx"


def test_tuples_in_a_payload_are_still_the_same_payload(tmp_path):
    jobs = make(tmp_path, {"x": 1, "betas": (0.9, 0.999)})
    run(jobs, "square")
    assert run(jobs, "square")[0].status == "skipped"


def test_a_changed_payload_is_refused_before_anything_runs(tmp_path):
    run(make(tmp_path, {"x": 1}), "square")
    changed = [Job("new", tmp_path / "new", {"x": 5}), *make(tmp_path, {"x": 2})]
    with pytest.raises(InputError, match=r"job-0 .*--out.*delete"):
        run(changed, "square")
    assert not (tmp_path / "new").exists()


def test_results_without_a_record_of_the_payload_are_refused(tmp_path):
    (jobs := make(tmp_path, {"x": 1}))[0].directory.mkdir()
    (jobs[0].directory / "results.json").write_text("{}")
    with pytest.raises(InputError, match="--out"):
        run(jobs, "square")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "RuntimeError: the loss is NaN"),
        ("sys.exit", "SystemExit: 7"),
        ("no results", "results.json"),
        ("os._exit", "exited with code 3"),
        ("kill", "memory"),
        ("die with a child", "exited with code 4"),
    ],
)
def test_a_failure_is_reported_and_the_others_finish(tmp_path, how, message):
    jobs = make(tmp_path, {}, {"how": how}, {})
    before, failed, after = run(jobs, "misbehave")
    assert (before.status, failed.status, after.status) == ("finished", "failed", "finished")
    assert message in failed.error
    assert "\n" not in failed.error
    if how != "no results":
        assert (jobs[1].directory / "error.txt").read_text().strip()


def test_the_traceback_is_kept(tmp_path):
    jobs = make(tmp_path, {"how": "raise"})
    run(jobs, "misbehave")
    text = (jobs[0].directory / "error.txt").read_text()
    assert "Traceback" in text
    assert "job_targets.py" in text


def test_every_worker_dying_does_not_hang(tmp_path):
    outcomes = run(make(tmp_path, *[{"how": "os._exit"}] * 3), "misbehave", workers=2)
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3


def test_a_job_cannot_break_the_protocol_by_reading_input(tmp_path):
    assert run(make(tmp_path, {"how": "read"}), "misbehave")[0].status == "finished"


def test_a_failed_job_is_tried_again_unless_told_not_to(tmp_path):
    jobs = make(tmp_path, {})
    assert run(jobs, "once")[0].status == "failed"
    kept = run(jobs, "once", retry_failed=False)[0]
    assert (kept.status, kept.error) == ("failed", "ValueError: first time")
    assert run(jobs, "once")[0].status == "finished"
    assert not (jobs[0].directory / "error.txt").exists()


def test_results_written_before_a_failure_do_not_count(tmp_path):
    jobs = make(tmp_path, {"how": "raise late"})
    assert run(jobs, "misbehave")[0].status == "failed"
    assert run(jobs, "misbehave")[0].status == "failed"


def test_a_target_that_does_not_exist_fails_the_job(tmp_path):
    assert "no_such" in run(make(tmp_path, {}), "no_such")[0].error
    outcome = run_jobs(make(tmp_path / "b", {}), "no_such_module:f", workers=1)[0]
    assert "no_such_module" in outcome.error


def test_the_share_of_the_cores_is_set_before_torch_is_imported(tmp_path):
    results = run(make(tmp_path, {}), "cores", threads_per_worker=2)[0].results()
    assert results["threads"] == "2"


def test_torch_uses_the_share_of_the_cores_in_every_job(tmp_path):
    outcomes = run(make(tmp_path, {}, {}), "torch_threads", threads_per_worker=1)
    assert [outcome.results()["threads"] for outcome in outcomes] == [1, 1]


def test_progress_and_outcomes_are_told_as_they_come(tmp_path):
    jobs = make(tmp_path, {"x": 1}, {"x": 2}, {"x": 3})
    run(jobs[:1], "square")
    told, outcomes = [], []
    run(jobs, "square", progress=lambda *args: told.append(args), on_outcome=outcomes.append)
    assert told == [("runs", 1, 3), ("runs", 2, 3), ("runs", 3, 3)]
    assert [outcome.status for outcome in outcomes] == ["skipped", "finished", "finished"]


def test_an_error_in_the_callback_ends_the_workers(tmp_path):
    def fail(stage, done, total):
        if done:
            raise RuntimeError("in the callback")

    jobs = make(tmp_path, {"x": 1}, {"x": 2})
    with pytest.raises(RuntimeError, match="in the callback"):
        run(jobs, "square", progress=fail)
    assert gone(json.loads((jobs[0].directory / "results.json").read_text())["pid"])


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InputError, match="share the directory"):
        run([Job("a", tmp_path, {}), Job("b", tmp_path / "." / "", {})], "square")
    with pytest.raises(InputError, match="JSON"):
        run(make(tmp_path, {"x": float("nan")}), "square")
    with pytest.raises(InputError, match="JSON"):
        run(make(tmp_path, {"x": object()}), "square")
    with pytest.raises(InputError, match="workers=0"):
        run(make(tmp_path, {"x": 1}), "square", workers=0)
    with pytest.raises(InputError, match="module:function"):
        run_jobs(make(tmp_path, {"x": 1}), "job_targets.square")


INTERRUPTED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from flatminima.study import Job, run_jobs
jobs = [Job(str(i), Path({out!r}) / str(i), {{}}) for i in range(4)]
try:
    run_jobs(jobs, "job_targets:sleep", workers=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_sleepers(out):
    """A process running four long jobs on two workers, and the pids of all below it."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(here=str(HERE), out=str(out))],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background inherits SIGINT as ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    files = [out / "0" / "pids", out / "1" / "pids"]
    wait_until(lambda: all(file.exists() and len(file.read_text().split()) == 2 for file in files))
    return process, [int(pid) for file in files for pid in file.read_text().split()]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def gone(pid):
    try:
        os.kill(pid, 0)
        # A zombie whose parent died is gone, even where nobody reaps it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupt_leaves_no_process_and_no_traceback(tmp_path):
    process, pids = start_sleepers(tmp_path)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - start < 5
    assert stderr == ""
    assert all(gone(pid) for pid in pids)
    assert not (tmp_path / "0" / "error.txt").exists()
    assert not (tmp_path / "2").exists()
    jobs = [Job(str(i), tmp_path / str(i), {}) for i in range(4)]
    assert [outcome.status for outcome in run(jobs, "order")] == ["finished"] * 4


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_end_when_the_parent_is_killed(tmp_path):
    process, pids = start_sleepers(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: all(gone(pid) for pid in pids), seconds=10)
