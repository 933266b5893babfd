"""The profile `kubernetes`. There is no Kubernetes here: a stand-in for kubectl runs each Job as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Project, cell

pytestmark = pytest.mark.cluster

KUBECTL = """#!{python}
import json, os, subprocess, sys
from pathlib import Path
jobs, arguments = Path({jobs!r}), sys.argv[1:]
if arguments[0] == "create":
    job = json.load(sys.stdin)
    number = len(list(jobs.glob("*.json")))
    name = job["metadata"].pop("generateName") + str(number)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (jobs / (name + ".json")).write_text(json.dumps(job))
    pod = subprocess.Popen(["/bin/sh", "-c", '"$@" >"$0.log" 2>&1; echo $? >"$0.rc"', jobs / name, *container["command"]],
        cwd=container["workingDir"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("job.batch/" + name)
elif arguments[0] == "get":
    name = arguments[1].removeprefix("job.batch/")
    if (jobs / "down").exists():
        (jobs / "down").unlink()
        sys.exit("cannot reach the server")
    if (jobs / (name + ".json")).exists():
        ended = jobs / (name + ".rc")
        kind = None if not ended.exists() else "Complete" if ended.read_text().strip() == "0" else "Failed"
        print(json.dumps({{"status": {{"conditions": [{{"type": kind, "status": "True"}}]}} if kind else {{}}}}))
"""


@pytest.fixture
def kubernetes(tiny: Project, tmp_path: Path) -> Path:
    """The folder of the stand-in: NAME.json is a submitted Job, NAME.log what it printed; `down`: one call fails."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, jobs=str(jobs)))
    program.chmod(0o755)
    return jobs


def test_a_cell_through_the_profile(tiny, kubernetes):
    environment = tiny.environment()
    environment["PATH"] = f"{kubernetes.parent / 'bin'}:{environment['PATH']}"
    environment["PYTHONPATH"] += f":{ROOT / '.venv/cluster'}"
    target = cell(track="tiny", attack="badnet+rate=0.1", defense="lp")
    (kubernetes / "down").touch()
    command = ["snakemake", "--profile", "profiles/kubernetes", "--seconds-between-status-checks", "1", "--", target]
    done = subprocess.run(command, cwd=tiny.path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in kubernetes.glob("*.log"))
    assert (tiny / target).exists()
    jobs = {path.name.split("-")[1]: json.loads(path.read_text()) for path in kubernetes.glob("*.json")}
    assert set(jobs) == {"dataset", "split", "poison", "train", "purify", "evaluate"}
    for rule, job in jobs.items():
        (container,) = job["spec"]["template"]["spec"]["containers"]
        requests = container["resources"]["requests"]
        assert requests.get("nvidia.com/gpu") == ("1" if rule in ("train", "purify", "evaluate") else None)
        assert requests == container["resources"]["limits"] and requests["cpu"] == "1"
        assert container["workingDir"] == str(tiny.path)
    assert jobs["train"]["spec"]["activeDeadlineSeconds"] == 480 * 60
    assert jobs["split"]["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"] == "4000M"


def test_a_job_that_was_deleted_has_failed(tiny, kubernetes):
    environment = tiny.environment()
    environment["PATH"] = f"{kubernetes.parent / 'bin'}:{environment['PATH']}"
    told = tiny.run(sys.executable, "profiles/kubernetes/job.py", "status", "job.batch/gone", PATH=environment["PATH"])
    assert told.stdout == "failed\n"


def test_the_manifest_is_a_job_that_a_preemption_does_not_end():
    job = yaml.safe_load((ROOT / "profiles/kubernetes/job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "Ignore" and rule["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy requires
