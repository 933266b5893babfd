# What the rules share: the plan, and functions that look a job up in it.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from depoison.running.lookup import Lookup

LOOKUP = Lookup(workflow)


wildcard_constraints:
    id=r"[^/]+-[0-9a-f]{10}",
    where=r"([^/]+/)*",
    table=r"(?!figure|claims\.|paper\.)[^/.]+",
    figure=r"figure[0-9][^/.]*",
    unknown=(
        r"(?!([^/]+/)*(figures\.md|figure[0-9][^/.]*\.(png|pdf|csv)|claims\.(md|json)|index\.html|paper\.(pdf|tex)"
        r"|(?!figure|claims\.|paper\.)[^/.]+\.(md|tex|csv|json))$).+"
    ),


onstart:
    LOOKUP.start()


onerror:
    LOOKUP.failed()
