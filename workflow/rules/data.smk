# Datasets, the split into the attacker's and the defender's part, and poisoned sets.


rule dataset:
    input:
        LOOKUP.inputs("dataset"),
    output:
        "results/dataset/{id}/data.safetensors",
    params:
        spec=LOOKUP.spec("dataset"),
        directory=LOOKUP.directory("dataset"),
        runtime=LOOKUP.runtime_json,
        root=LOOKUP.root,
    log:
        "logs/dataset/{id}.log",
    benchmark:
        "logs/dataset/{id}.tsv"
    threads: LOOKUP.runtime.threads
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} {params.root:q} --log {log:q}"


rule split:
    input:
        LOOKUP.inputs("split"),
    output:
        "results/split/{id}/split.safetensors",
    params:
        spec=LOOKUP.spec("split"),
        directory=LOOKUP.directory("split"),
        runtime=LOOKUP.runtime_json,
    log:
        "logs/split/{id}.log",
    benchmark:
        "logs/split/{id}.tsv"
    threads: LOOKUP.runtime.threads
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"


rule poison:
    input:
        LOOKUP.inputs("poison"),
    output:
        "results/poison/{id}/poison.safetensors",
    params:
        spec=LOOKUP.spec("poison"),
        directory=LOOKUP.directory("poison"),
        runtime=LOOKUP.runtime_json,
    log:
        "logs/poison/{id}.log",
    benchmark:
        "logs/poison/{id}.tsv"
    threads: LOOKUP.runtime.threads
    conda:
        "../../envs/torch.yaml"
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"
