# Metrics of models.


rule evaluate:
    input:
        LOOKUP.inputs("evaluate"),
    output:
        "results/evaluate/{id}/metrics.json",
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
        spec=LOOKUP.spec("evaluate"),
        directory=LOOKUP.directory("evaluate"),
        runtime=LOOKUP.runtime_json,
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"
