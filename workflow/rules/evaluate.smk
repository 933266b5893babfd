# Metrics of models.


rule evaluate:
    input:
        LOOKUP.inputs("evaluate"),
    output:
        update("results/evaluate/{id}/metrics.json"),
    log:
        "logs/evaluate/{id}.log",
    benchmark:
        "logs/evaluate/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=1,
    params:
        arguments=LOOKUP.arguments("evaluate"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"


rule probe:
    input:
        LOOKUP.inputs("probe"),
    output:
        update("results/probe/{id}/value.json"),
    log:
        "logs/probe/{id}.log",
    benchmark:
        "logs/probe/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=1,
    params:
        arguments=LOOKUP.arguments("probe"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"
