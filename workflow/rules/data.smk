# Datasets, what attacks make beforehand, the split into the attacker's and the defender's part, and poisoned sets.


rule dataset:
    input:
        LOOKUP.inputs("dataset"),
    output:
        update("results/dataset/{id}/data.safetensors"),
    log:
        "logs/dataset/{id}.log",
    benchmark:
        "logs/dataset/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    params:
        arguments=LOOKUP.arguments("dataset"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"


rule split:
    input:
        LOOKUP.inputs("split"),
    output:
        update("results/split/{id}/split.safetensors"),
    log:
        "logs/split/{id}.log",
    benchmark:
        "logs/split/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    params:
        arguments=LOOKUP.arguments("split"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"


rule asset:
    input:
        LOOKUP.inputs("asset"),
    output:
        update("results/asset/{id}/asset.safetensors"),
    log:
        "logs/asset/{id}.log",
    benchmark:
        "logs/asset/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=1,
    params:
        arguments=LOOKUP.arguments("asset"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"


rule poison:
    input:
        LOOKUP.inputs("poison"),
    output:
        update("results/poison/{id}/poison.safetensors"),
    log:
        "logs/poison/{id}.log",
    benchmark:
        "logs/poison/{id}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: LOOKUP.runtime.threads
    resources:
        gpu=LOOKUP.gpus("poison"),
    params:
        arguments=LOOKUP.arguments("poison"),
    shell:
        "python -m depoison stage {params.arguments} --log {log:q}"
