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
            domains=recipe.domains,
            cost=recipe.expense,
        )
    for name, summary in (
        ("random", "real items drawn at random"),
        ("herding", "real items that follow the class mean in feature space"),
        ("kcenter", "real items that cover the class in feature space"),
        ("kmeans", "real items nearest the k-means centres of a class"),
        ("forgetting", "real items by how often a network forgets them while it is trained"),
        ("el2n", "real items by the early error of networks in training"),
        ("grand", "real items by the early gradient norm of networks in training"),
        ("correct", "real items that networks trained on real data classify correctly (DATM)"),
        ("dq", "real items of each of ten graph-cut bins of a class"),
        ("crops", "crops of real items that a teacher finds clear, tiled (RDED)"),
    ):
        registry.add("selector", name, f"ddfed.select:{name.upper()}", summary=summary)
    registry.add("objective", "mean", "ddfed.match:MeanMatching", summary="class-mean features (and logits)")
    registry.add("objective", "gradient", "ddfed.match:GradientMatching", summary="gradients of the weights by class")
    registry.add(
        "objective", "moments", "ddfed.match:MomentMatching", summary="a weighted sum of terms on the rows of a class"
    )
    registry.add("objective", "unroll", "ddfed.match:Unrolling", summary="real loss after a training on the set")
    registry.add("objective", "ridge", "ddfed.match:RidgeMatching", summary="real loss of a regression on the set")
    registry.add(
        "objective", "implicit", "ddfed.match:ImplicitMatching", summary="real loss of a linearised network, solved"
    )
    registry.add(
        "objective", "closed-ridge", "ddfed.match:ClosedRidge", summary="the set of a linear regression, in closed form"
    )
    registry.add(
        "objective", "trajectory", "ddfed.match:TrajectoryMatching", summary="where networks trained on real data go"
    )
    registry.add("objective", "statistics", "ddfed.match:TeacherStatistics", summary="what a teacher's batch norms saw")
    for name, target, summary in (
        ("easy", "Easiness", "how strongly the rows of a class pull at the weights (SDC)"),
        ("cmi", "ClassInformation", "how much rows of a class differ to a trained network (CMI)"),
        ("mim4dd", "MutualInformation", "contrast of real and synthetic rows at every stage (MIM4DD)"),
        ("multisize", "MultisizeSubset", "the engine's judgement of the first items, as a term (MDC)"),
    ):
        registry.add("objective", name, f"ddfed.match:{target}", summary=summary)
    registry.add("decoder", "pixels", "ddfed.store:Pixels", summary="each item is one row")
    registry.add(
        "decoder", "multi-formation", "ddfed.store:MultiFormation", summary="cells of a canvas, upsampled (IDC, IDM)"
    )
    registry.add("decoder", "mirrored", "ddfed.store:Mirrored", summary="each item and its mirror image (FYI)")
    for name, target, summary in (
        ("hallucinator", "Hallucinators", "bases that shared hallucinators turn into many rows (HaBa)"),
        ("dct", "Frequencies", "the frequencies that matter in a class (FreD)"),
        ("basis", "SharedBasis", "coefficients of a basis that all classes share (addressable memory, NSD)"),
        ("field", "Fields", "a small sine network of the position for each item (DDiF)"),
        ("offsets", "Offsets", "real items, and offsets that items of all classes share (INFER)"),
        ("palette", "Palette", "a few colours for each item and their indices (AutoPalette's storage)"),
    ):
        registry.add("decoder", name, f"ddfed.store:{target}", summary=summary)
    registry.add("decoder", "latent", "ddfed.store:Latents", summary="latents of a generator from a plugin (GLaD)")
    registry.add("generator", "resize", "ddfed.store.latent:Resize", summary="enlarges small items; no weights")
    registry.add("decoder", "sampler", "ddfed.store:Sampler", summary="a trained generator; rows are drawn (DiM)")
    registry.add("generator", "mlp", "ddfed.store.generators:MLP", summary="linear layers, to be trained; any items")
    registry.add("generator", "conv", "ddfed.store.generators:Convolutional", summary="convolutions, to be trained")
    registry.add("labels", "hard", "ddfed.store:HardLabels", summary="one class per item")
    registry.add("labels", "logits", "ddfed.store:LogitLabels", summary="learned logits")
    registry.add("labels", "vectors", "ddfed.store:VectorLabels", summary="learned vectors, by squared distance (KIP)")
    registry.add(
        "labels", "representations", "ddfed.store:RepresentationLabels", summary="learned, from a teacher's (KRR-ST)"
    )
    registry.add("labels", "teacher", "ddfed.store:TeacherLabels", summary="logits of a network trained on real data")
    registry.add("labels", "gift", "ddfed.store:GiftLabels", summary="refined soft labels, by cosine (GIFT)")
    registry.add("labels", "dense", "ddfed.store:DenseLabels", summary="soft labels of rows and windows of them (LADD)")
    registry.add("labels", "blocks", "ddfed.store:BlockLabels", summary="labels of stored views (FKD, LPLD)")
    registry.add("sampler", "uniform", "ddfed.sample:UniformSampler", summary="any row of a class")
    registry.add(
        "sampler", "kmeans", "ddfed.sample:KMeansSampler", summary="rows nearest the centres of a class (DREAM)"
    )
    registry.add("pool", "R", "ddfed.pool:RandomPool", summary="a fresh random network at every step")
    registry.add("pool", "RS", "ddfed.pool:SynTrainedPool", summary="random, then trained on the synthetic set")
    registry.add("pool", "QS", "ddfed.pool:OnlinePool", summary="networks of many ages, trained on the set")
    registry.add("pool", "RA", "ddfed.pool:AdaptivePool", summary="as RS, for as long as the network learns (CAFE)")
    registry.add("pool", "RT", "ddfed.pool:RealTrainedPool", summary="random, then trained on real data")
    registry.add("pool", "Q", "ddfed.pool:QueuePool", summary="a queue of networks in training on real data")
    registry.add("pool", "PI", "ddfed.pool:PathPool", summary="between first and trained weights; has an expert")
    registry.add("pool", "T", "ddfed.pool:TrainedPool", summary="networks trained on real data beforehand")
    registry.add("pool", "PW", "ddfed.pool:NoisyPool", summary="early-stage networks with noise on their weights")
    registry.add("pool", "X", "ddfed.pool:ExpertPool", summary="two epochs of a network trained on real data")
    registry.add("pool", "path", "ddfed.pool:GivenPath", summary="two points of a given path of weights")
    registry.add("pool", "teachers", "ddfed.pool:TeacherPool", summary="the networks that label, in turn")
    registry.add("pool", "exact", "ddfed.pool:ExactPool", summary="given weights")
    registry.add("pool", "ball", "ddfed.pool:BallPool", summary="weights at a given distance from given ones")
    registry.add("pool", "blend", "ddfed.pool:BlendPool", summary="given weights mixed with fresh random ones")
    registry.add("pool", "trust", "ddfed.pool:TrustPool", summary="a walk from given weights along the synthetic set")
    for name in (
        "E-dc", "E-dsa", "E-idc", "E-mtt", "E-datm", "E-krr", "E-linear", "E-frepo", "E-dd", "E-rat",
        "E-kd", "E-rded", "E-infer", "E-ssl", "E-ssl-all",
    ):  # fmt: skip
        registry.add("protocol", name, f"ddfed.evaluate.protocols:{name.upper().replace('-', '_')}")
