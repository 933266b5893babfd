"""What Snakemake calls to submit, watch and cancel a job on Kubernetes, by kubectl."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(required=True)
    sub = actions.add_parser("submit", help="prints the job's name")
    sub.set_defaults(action=submit)
    sub.add_argument("--rule", required=True)
    for name in ("threads", "gpu", "mem-mb", "runtime"):
        sub.add_argument(f"--{name}", type=int, required=True)
    sub.add_argument("script")
    sub = actions.add_parser("status", help="prints running, success or failed")
    sub.set_defaults(action=status)
    sub.add_argument("job")
    sub = actions.add_parser("cancel")
    sub.set_defaults(action=cancel)
    sub.add_argument("jobs", nargs="+")
    options = parser.parse_args()
    options.action(options)


def manifest(options: argparse.Namespace) -> dict[str, Any]:
    """The Job for a script of Snakemake's, in the folder where this is called."""
    job = yaml.safe_load(Path(__file__).with_name("job.yaml").read_text(encoding="utf-8"))
    job["metadata"]["generateName"] = f"depoison-{options.rule}-"
    job["spec"]["activeDeadlineSeconds"] = options.runtime * 60
    (container,) = job["spec"]["template"]["spec"]["containers"]
    amounts = {"cpu": str(options.threads), "memory": f"{options.mem_mb}M"}
    if options.gpu:
        amounts["nvidia.com/gpu"] = str(options.gpu)
    container |= {
        "command": ["/bin/sh", options.script],
        "workingDir": os.getcwd(),
        "resources": {"requests": amounts, "limits": amounts},
    }
    return job


def submit(options: argparse.Namespace) -> None:
    print(kubectl("create", "--filename", "-", "--output", "name", given=json.dumps(manifest(options))), end="")


def status(options: argparse.Namespace) -> None:
    told = kubectl("get", options.job, "--ignore-not-found", "--output", "json", check=False)
    if told is None:
        print("running")  # the cluster could not be asked: Snakemake will ask again
    elif not told.strip():
        print("failed")  # somebody deleted it
    else:
        conditions = json.loads(told)["status"].get("conditions", [])
        ended = {condition["type"] for condition in conditions if condition["status"] == "True"}
        print("success" if "Complete" in ended else "failed" if "Failed" in ended else "running")


def cancel(options: argparse.Namespace) -> None:
    kubectl("delete", "--ignore-not-found", "--wait=false", *options.jobs)


def kubectl(*arguments: str, given: str | None = None, check: bool = True) -> str | None:
    """What kubectl prints, or None where it failed and that is no error."""
    done = subprocess.run(["kubectl", *arguments], input=given, stdout=subprocess.PIPE, text=True)
    if done.returncode and check:
        sys.exit(f"kubectl {arguments[0]}: failed; see above")
    return None if done.returncode else done.stdout


if __name__ == "__main__":
    main()
