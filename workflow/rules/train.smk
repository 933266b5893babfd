# Backdoored (and clean) models.


rule train:
    input:
        LOOKUP.inputs("train"),
    output:
        "results/train/{id}/model.safetensors",
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
        spec=LOOKUP.spec("train"),
        directory=LOOKUP.directory("train"),
        runtime=LOOKUP.runtime_json,
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"
