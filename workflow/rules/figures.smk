# Figures, the artifacts that only they need, and the page that lists a paper's figures.


localrules:
    figure,
    figure_page,


rule embedding:
    input:
        LOOKUP.inputs("embedding"),
    output:
        update("results/embedding/{id}/embedding.csv"),
    log:
        "logs/embedding/{id}.log",
    benchmark:
        "logs/embedding/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=1,
    params:
        arguments=LOOKUP.arguments("embedding"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"


rule examples:
    input:
        LOOKUP.inputs("examples"),
    output:
        update("results/examples/{id}/examples.safetensors"),
    log:
        "logs/examples/{id}.log",
    benchmark:
        "logs/examples/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    params:
        arguments=LOOKUP.arguments("examples"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"


rule figure:
    input:
        LOOKUP.figure_inputs,
    output:
        report(
            "reports/{where}{figure}.png",
            caption="../report/figure.rst",
            category=LOOKUP.category,
            subcategory="Figures",
            labels={"name": "{figure}", "file": "picture"},
        ),
        report(
            "reports/{where}{figure}.csv",
            caption="../report/figure.rst",
            category=LOOKUP.category,
            subcategory="Figures",
            labels={"name": "{figure}", "file": "numbers"},
        ),
        "reports/{where}{figure}.pdf",
    log:
        "logs/reports/{where}{figure}.log",
    benchmark:
        "logs/reports/{where}{figure}.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        target="reports/{where}{figure}",
        config=LOOKUP.config_json,
    shell:
        "python -m depoison figure {params.target:q} --config-json {params.config:q} --log {log:q}"


rule figure_page:
    input:
        LOOKUP.figure_page_inputs,
    output:
        "reports/{where}figures.md",
    log:
        "logs/reports/{where}figures.log",
    benchmark:
        "logs/reports/{where}figures.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        target="reports/{where}figures",
        config=LOOKUP.config_json,
    shell:
        "python -m depoison figure {params.target:q} --config-json {params.config:q} --log {log:q}"
