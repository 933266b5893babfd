# What the rules share: the plan, and functions that look a job up in it.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from depoison.plan.specs import STAGES
from depoison.reports.kinds import anywhere, kinds, name_of, of_no_kind
from depoison.running.lookup import Lookup

LOOKUP = Lookup(workflow)


wildcard_constraints:
    id=r"[^/]+-[0-9a-f]{10}",
    where=anywhere(),
    unknown=of_no_kind(),


onstart:
    LOOKUP.start()


onerror:
    LOOKUP.failed()
