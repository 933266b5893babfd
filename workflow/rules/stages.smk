# A rule for each stage: datasets, poisoned sets, models, and what is measured of them.


for stage in STAGES:

    rule:
        name:
            stage
        input:
            LOOKUP.inputs(stage),
        output:
            update(f"results/{stage}/{{id}}/{STAGES[stage].product}"),
        log:
            f"logs/{stage}/{{id}}.log",
        benchmark:
            f"logs/{stage}/{{id}}.tsv"
        conda:
            "../../envs/torch.yaml"
        threads: LOOKUP.runtime.threads
        resources:
            gpu=LOOKUP.gpus(stage),
        params:
            arguments=LOOKUP.arguments(stage),
        shell:
            "python -m depoison stage {params.arguments} --log {log:q}"
