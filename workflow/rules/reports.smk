# Files with fixed names: a rule for each kind of report, and one for what is none. They carry the hash of what they show.


localrules:
    no_report,


rule no_report:
    input:
        LOOKUP.refuse,
    output:
        "reports/{unknown}",


for name, kind in kinds().items():

    rule:
        name:
            name
        input:
            LOOKUP.needs(kind),
        output:
            *LOOKUP.outputs(kind),
        log:
            f"logs/{kind.path.removeprefix('results/')}.log",
        benchmark:
            f"logs/{kind.path.removeprefix('results/')}.tsv"
        wildcard_constraints:
            name=name_of(kind),
        localrule: True
        conda:
            "../../envs/torch.yaml"
        params:
            target=kind.path,
            config=LOOKUP.config_json,
            overlays=LOOKUP.overlays,
        shell:
            "python -m depoison report {params.target:q} --config-json {params.config:q} {params.overlays} --log {log:q}"
