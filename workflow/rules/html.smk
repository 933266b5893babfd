# All tables and figures of a track on one page. It is made from what is there: nothing is computed for it.


localrules:
    html,


rule html:
    input:
        LOOKUP.html_inputs,
    output:
        "reports/{where}index.html",
    log:
        "logs/reports/{where}index.log",
    benchmark:
        "logs/reports/{where}index.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        config=LOOKUP.config_json,
        overlays=LOOKUP.overlays,
    shell:
        "python -m depoison html {output:q} --config-json {params.config:q} {params.overlays} --log {log:q}"
