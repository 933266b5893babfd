# Files with fixed names: cells and tables. They carry the hash of what they were made from.


localrules:
    cell,
    table,
    no_report,


rule no_report:
    input:
        LOOKUP.refuse,
    output:
        "reports/{unknown}",


rule cell:
    input:
        LOOKUP.cell_inputs,
    output:
        "results/cells/{cell}",
    log:
        "logs/cells/{cell}.log",
    benchmark:
        "logs/cells/{cell}.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        config=LOOKUP.config_json,
        overlays=LOOKUP.overlays,
    shell:
        "python -m depoison cell {output:q} --config-json {params.config:q} {params.overlays} --log {log:q}"


rule table:
    input:
        LOOKUP.table_inputs,
    output:
        report(
            "reports/{where}{table}.md",
            caption="../report/table.rst",
            category=LOOKUP.category,
            subcategory="Tables",
            labels={"name": "{table}", "file": "table"},
        ),
        report(
            "reports/{where}{table}.csv",
            caption="../report/table.rst",
            category=LOOKUP.category,
            subcategory="Tables",
            labels={"name": "{table}", "file": "numbers"},
        ),
        multiext("reports/{where}{table}", ".tex", ".json"),
    log:
        "logs/reports/{where}{table}.log",
    benchmark:
        "logs/reports/{where}{table}.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        target="reports/{where}{table}",
        config=LOOKUP.config_json,
    shell:
        "python -m depoison table {params.target:q} --config-json {params.config:q} --log {log:q}"
