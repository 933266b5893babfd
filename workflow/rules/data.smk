# Datasets, the split into the attacker's and the defender's part, and poisoned sets.


rule dataset:
    input:
        LOOKUP.inputs("dataset"),
    output:
        "results/dataset/{id}/data.safetensors",
    log:
        "logs/dataset/{id}.log",
    benchmark:
        "logs/dataset/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    params:
        spec=LOOKUP.spec("dataset"),
        directory=LOOKUP.directory("dataset"),
        runtime=LOOKUP.runtime_json,
        root=LOOKUP.root,
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} {params.root:q} --log {log:q}"


rule split:
    input:
        LOOKUP.inputs("split"),
    output:
        "results/split/{id}/split.safetensors",
    log:
        "logs/split/{id}.log",
    benchmark:
        "logs/split/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    params:
        spec=LOOKUP.spec("split"),
        directory=LOOKUP.directory("split"),
        runtime=LOOKUP.runtime_json,
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"


rule poison:
    input:
        LOOKUP.inputs("poison"),
    output:
        "results/poison/{id}/poison.safetensors",
    log:
        "logs/poison/{id}.log",
    benchmark:
        "logs/poison/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    params:
        spec=LOOKUP.spec("poison"),
        directory=LOOKUP.directory("poison"),
        runtime=LOOKUP.runtime_json,
    shell:
        "python -m depoison stage {params.spec:q} --output {params.directory:q}"
        " --runtime {params.runtime:q} --log {log:q}"
