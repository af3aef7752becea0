"""What this package offers. Light: imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddfed.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from ddfed.registry import Registry

_NEEDS: dict[str, Any] = {"extra": "federated", "modules": ("flwr",)}


@hookimpl
def ddfed_register(registry: Registry) -> None:
    sets, averaging = "ddfed_federated.methods.sets", "ddfed_federated.methods.averaging"
    condensed = "ddfed_federated.methods.condensed"
    for name, target, summary, citation, family in (
        ("feddm", f"{sets}:FEDDM", "clients distil around the global weights, the server trains on the union",
         "Xiong et al., CVPR 2023", "sets"),
        ("fedaf", f"{condensed}:FEDAF", "sets made towards all clients' class-mean logits; no weights go up",
         "Wang et al., CVPR 2024", "sets"),
        ("fedlap", f"{condensed}:FEDLAP", "sets that approximate the local loss, trusted within a radius",
         "Wang et al., PoPETs 2024", "sets"),
        ("fedd3", f"{condensed}:FEDD3", "one round: sets made by kernel regression or any other engine",
         "Song et al., IJCNN 2023", "sets"),
        ("collabdm", "ddfed_federated.methods.collabdm:COLLABDM",
         "one round: class means under shared networks, from which the server distils",
         "Holland et al., ECAI 2024", "sets"),
        ("fedsynth", "ddfed_federated.methods.fedsynth:FEDSYNTH",
         "FedAvg with updates sent as tiny soft-labelled sets", "Hu et al., 2022", "averaging"),
        ("fedmk", "ddfed_federated.methods.fedmk:FEDMK",
         "bilevel sets from peers' sets, hard rows first; a generator against forgetting", "Liu et al., ICLR 2023",
         "sets"),
        ("hfldd", "ddfed_federated.methods.hfldd:HFLDD",
         "clusters of unlike clients: members distil for their head, heads average", "Shi et al., 2024", "averaging"),
        ("fedcache", "ddfed_federated.methods.fedcache:FEDCACHE",
         "personal models and a cache of distilled items, served by each client's mix of classes", "Pan et al., 2024",
         "personal"),
        ("dosfl", "ddfed_federated.methods.dosfl:DOSFL",
         "one round: sequences of soft-labelled batches that the server replays from a shared start",
         "Zhou et al., 2020", "sets"),
        ("dcfl", "ddfed_federated.methods.dcfl:DCFL",
         "FedAvg whose clients also train on the sets of a few that see differently", "Sha and Sun, 2024",
         "averaging"),
        ("desa", "ddfed_federated.methods.desa:DESA",
         "personal models of any structure learn from answers to shared synthetic anchors",
         "Huang et al., ICML 2024", "personal"),
        ("random-once", f"{sets}:RANDOM_ONCE", "control: real items of the same budget, chosen once",
         "baseline", "sets"),
        ("random-fresh", f"{sets}:RANDOM_FRESH", "control: real items of the same budget, new in every round",
         "baseline", "sets"),
        ("fedavg", f"{averaging}:FEDAVG", "average of locally trained weights",
         "McMahan et al., AISTATS 2017", "averaging"),
        ("fedprox", f"{averaging}:FEDPROX", "FedAvg with a pull towards the global weights",
         "Li et al., MLSys 2020", "averaging"),
        ("fedavgm", f"{averaging}:FEDAVGM", "FedAvg with momentum at the server",
         "Hsu et al., 2019", "averaging"),
        ("fedadam", f"{averaging}:FEDADAM", "Adam at the server on the averaged update",
         "Reddi et al., ICLR 2021", "averaging"),
        ("fednova", f"{averaging}:FEDNOVA", "clients' mean gradients are averaged, however many steps they made",
         "Wang et al., NeurIPS 2020", "averaging"),
        ("scaffold", f"{averaging}:SCAFFOLD", "local steps corrected for the client's drift by control variates",
         "Karimireddy et al., ICML 2020", "averaging"),
        ("moon", f"{averaging}:MOON", "features stay near the global model's and leave the client's last ones",
         "Li et al., CVPR 2021", "averaging"),
        ("dense", "ddfed_federated.methods.datafree:DENSE",
         "networks sent once; a student learns from their ensemble on made-up rows",
         "Zhang et al., NeurIPS 2022", "data-free"),
        ("dynafed", "ddfed_federated.methods.dynafed:DYNAFED", "the server distils the path of its models",
         "Pi et al., CVPR 2023", "averaging"),
        ("feddgm", "ddfed_federated.methods.feddgm:FEDDGM",
         "the server finds, in a generator, the data that would have trained each client so",
         "Jia et al., ECCV 2024", "averaging"),
        ("quickdrop", "ddfed_federated.methods.quickdrop:QUICKDROP", "clients distil at home, and forget by it",
         "Dhasade et al., Middleware 2024", "averaging"),
        ("fedlgd", "ddfed_federated.methods.fedlgd:FEDLGD", "clients train on distilled rows and a global set",
         "Huang et al., TMLR 2024", "averaging"),
    ):  # fmt: skip
        registry.add("federated", name, target, summary=summary, citation=citation, family=family, **_NEEDS)
    cuts, dirichlet, given = (f"ddfed_federated.splits.{module}" for module in ("cuts", "dirichlet", "given"))
    for name, target, summary in (
        ("iid", f"{cuts}:iid", "one shuffled order, cut in near-equal parts"),
        ("dirichlet", f"{dirichlet}:dirichlet", "each class cut by Dirichlet proportions (capped form)"),
        ("dirichlet-minimum", f"{dirichlet}:dirichlet_minimum",
         "some rows of every class for everybody, the rest by Dirichlet proportions (CollabDM)"),
        ("doubly-dirichlet", f"{dirichlet}:doubly_dirichlet",
         "Dirichlet proportions made doubly stochastic: equal sizes (DYNAFED)"),
        ("inner-dirichlet", f"{dirichlet}:inner_dirichlet",
         "a Dirichlet mix of classes for each client, sizes given (FedDyn)"),
        ("mixed", f"{dirichlet}:mixed", "sizes from one Dirichlet, mixes of classes from another"),
        ("pathological", f"{cuts}:pathological", "a fixed number of classes per client"),
        ("consecutive", f"{cuts}:consecutive", "client i holds classes i, i + 1, ... (FedD3)"),
        ("disjoint", f"{cuts}:disjoint", "each class belongs to one client (FedLAP-DP)"),
        ("shards", f"{cuts}:shards", "label-sorted shards, a few per client"),
        ("quantity", f"{dirichlet}:quantity", "client sizes from a Dirichlet, labels alike"),
    ):  # fmt: skip
        registry.add("partitioner", name, target, summary=summary)
    for name, target, summary in (
        ("natural", "natural", "rows of one writer, speaker or site stay together"),
        ("file", "from_file", "a split saved before, such as a run's partition.json"),
        ("own", "own", "each site of a deployment holds a folder of its own"),
    ):
        registry.add("partitioner", name, f"{given}:{target}", summary=summary, sees="task")
    registry.add("skew", "noise", "ddfed_federated.skew:noise", summary="Gaussian noise that grows with the client")
    registry.add("backend", "inprocess", "ddfed_federated.backends:inprocess",
                 summary="in this process or a small pool of processes", **_NEEDS)  # fmt: skip
    registry.add("backend", "ray", "ddfed_federated.backends:ray",
                 summary="Flower's simulation on Ray", extra="federated", modules=("flwr", "ray"))  # fmt: skip
    registry.add("backend", "deployed", "ddfed_federated.backends:deployed",
                 summary="on separate machines, by `ddfed deploy`", **_NEEDS)  # fmt: skip


@hookimpl
def ddfed_commands(cli: click.Group) -> None:
    from ddfed.cli import LazyCommand

    cli.add_command(
        LazyCommand("simulate", "ddfed_federated.cli:simulate", "Run a federation: clients distil, a server learns.")
    )
    cli.add_command(
        LazyCommand("forget", "ddfed_federated.forget:forget", "Let a finished federation forget a client or a class.")
    )
    cli.add_command(
        LazyCommand("deploy", "ddfed_federated.deploy.cli:deploy", "Set up and run a federation of separate machines.")
    )
