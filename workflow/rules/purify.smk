# Purified models.


rule purify:
    input:
        LOOKUP.inputs("purify"),
    output:
        "results/purify/{id}/model.safetensors",
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
        spec=LOOKUP.spec("purify"),
        directory=LOOKUP.directory("purify"),
        runtime=LOOKUP.runtime_json,
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"
