# Backdoored (and clean) models.


rule train:
    input:
        LOOKUP.inputs("train"),
    output:
        update("results/train/{id}/model.safetensors"),
    log:
        "logs/train/{id}.log",
    benchmark:
        "logs/train/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=1,
    params:
        arguments=LOOKUP.arguments("train"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"
