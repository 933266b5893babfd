# Purified models.


rule purify:
    input:
        LOOKUP.inputs("purify"),
    output:
        "results/purify/{id}/model.safetensors",
    params:
        spec=LOOKUP.spec("purify"),
        directory=LOOKUP.directory("purify"),
        runtime=LOOKUP.runtime_json,
    log:
        "logs/purify/{id}.log",
    benchmark:
        "logs/purify/{id}.tsv"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=1,
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"
