# depoison: from datasets to the papers' tables and figures. The rules are in workflow/rules/, the work in workflow/depoison/.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/stages.smk"
include: "workflow/rules/reports.smk"


rule all:
    default_target: True
    input:
        "reports/demo/overview.md",
        "reports/demo/figure1.png",
