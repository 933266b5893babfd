# Verdicts on a paper's claims, from the cells that are there: this rule makes none.


localrules:
    claims,


rule claims:
    input:
        LOOKUP.claims_inputs,
    output:
        multiext("reports/{where}claims", ".md", ".json"),
    log:
        "logs/reports/{where}claims.log",
    benchmark:
        "logs/reports/{where}claims.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        target="reports/{where}claims",
        config=LOOKUP.config_json,
    shell:
        "python -m depoison claims {params.target:q} --config-json {params.config:q} --log {log:q}"
