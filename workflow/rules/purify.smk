# Purified models.


rule purify:
    input:
        LOOKUP.inputs("purify"),
    output:
        update("results/purify/{id}/model.safetensors"),
    log:
        "logs/purify/{id}.log",
    benchmark:
        "logs/purify/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=1,
    params:
        arguments=LOOKUP.arguments("purify"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"
