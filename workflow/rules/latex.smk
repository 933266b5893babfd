# A paper's tables and figures, ours beside the published ones, as one LaTeX document and its PDF.


localrules:
    paper,


rule paper:
    input:
        LOOKUP.paper_inputs,
    output:
        report(
            "reports/{where}paper.pdf",
            caption="../report/paper.rst",
            category=LOOKUP.category,
            subcategory="Document",
            labels={"name": "paper", "file": "document"},
        ),
        "reports/{where}paper.tex",
    log:
        "logs/reports/{where}paper.log",
    benchmark:
        "logs/reports/{where}paper.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        target="reports/{where}paper",
        config=LOOKUP.config_json,
        overlays=LOOKUP.overlays,
    shell:
        "python -m depoison paper {params.target:q} --config-json {params.config:q} {params.overlays} --log {log:q}"
