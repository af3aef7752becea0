"""The core's own components, offered by the same hook as everybody's. Light: imports nothing heavy."""

from ddfed.hookspecs import hookimpl
from ddfed.recipes import builtin
from ddfed.registry import Registry


@hookimpl
def ddfed_register(registry: Registry) -> None:
    for target, recipe in builtin():
        registry.add(
            "recipe",
            recipe.name,
            target,
            summary=recipe.title,
            family=recipe.family,
            citation=recipe.citation,
            requires=recipe.needs,
            cost=recipe.expense,
        )
    for name, summary in (
        ("random", "real items drawn at random"),
        ("herding", "real items that follow the class mean in feature space"),
        ("kcenter", "real items that cover the class in feature space"),
        ("kmeans", "real items nearest the k-means centres of a class"),
    ):
        registry.add("selector", name, f"ddfed.select:{name.upper()}", summary=summary)
    registry.add("objective", "mean", "ddfed.match:MeanMatching", summary="class-mean features (and logits)")
    registry.add("decoder", "pixels", "ddfed.store:Pixels", summary="each item is one row")
    registry.add(
        "decoder", "multi-formation", "ddfed.store:MultiFormation", summary="cells of a canvas, upsampled (IDC, IDM)"
    )
    registry.add("decoder", "mirrored", "ddfed.store:Mirrored", summary="each item and its mirror image (FYI)")
    registry.add("labels", "hard", "ddfed.store:HardLabels", summary="one class per item")
    registry.add("labels", "logits", "ddfed.store:LogitLabels", summary="learned logits")
    registry.add("sampler", "uniform", "ddfed.sample:UniformSampler", summary="any row of a class")
    registry.add(
        "sampler", "kmeans", "ddfed.sample:KMeansSampler", summary="rows nearest the centres of a class (DREAM)"
    )
    registry.add("pool", "R", "ddfed.pool:RandomPool", summary="a fresh random network at every step")
    registry.add("pool", "RS", "ddfed.pool:SynTrainedPool", summary="random, then trained on the synthetic set")
    registry.add("pool", "RT", "ddfed.pool:RealTrainedPool", summary="random, then trained on real data")
    registry.add("pool", "Q", "ddfed.pool:QueuePool", summary="a queue of networks in training on real data")
    registry.add("pool", "exact", "ddfed.pool:ExactPool", summary="given weights")
    registry.add("pool", "ball", "ddfed.pool:BallPool", summary="weights at a given distance from given ones")
    for name, constant in (("E-dc", "E_DC"), ("E-dsa", "E_DSA"), ("E-idc", "E_IDC")):
        registry.add("protocol", name, f"ddfed.evaluate.protocols:{constant}")
