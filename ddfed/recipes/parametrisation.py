"""Ways of storing a set: the same bytes hold more rows. The objective is a host's, here DM's."""

from __future__ import annotations

from ddfed.recipes.base import Preset, Published, Recipe, laptop

_FYI = "Son et al., FYI: Flip Your Images for Dataset Distillation, ECCV 2024"
_HABA = "Liu et al., Dataset Distillation via Factorization (HaBa), NeurIPS 2022"
_FRED = "Shin et al., Frequency Domain-based Dataset Distillation (FreD), NeurIPS 2023"
_NSD = "Yang et al., Neural Spectral Decomposition for Dataset Distillation, ECCV 2024"
_DDIF = "Shin et al., Distilling Dataset into Neural Field (DDiF), ICLR 2025"
_PALETTE = "Yuan et al., Color-Oriented Redundancy Reduction in Dataset Distillation (AutoPalette), NeurIPS 2024"

#: DM as the host: what the parametrisations below have in common.
_DM = {
    "objective": "mean",
    "objective_options": {"rows": 256},
    "pool": "R",
    "labels": "hard",
    "augment": "dsa",
    "init": "random",
    "scope": "joint",
    "steps": 20_000,
    "protocol": "E-dsa",
}
_ADAM = {"optimizer": "adam", "lr": 0.05}
_FEWER_ROWS = {"rows": 64}
_EQUATION = (
    r"$\min_\phi \sum_c \lVert \frac{1}{|B_c|}\sum_{x \in B_c} f(x) - \frac{1}{|S_c|}\sum_{s \in S_c} f(s) \rVert^2$ "
)
_MTT_HOST = (
    "the host is DM (mean features); the published figures are with trajectory matching, whose engine is a choice of "
    "its own (distill.objective)"
)
_ADAM_WHY = (
    "Adam instead of SGD: what all rows share gets gradients hundreds of times those of a single value, and one "
    "step size must fit both"
)


def _published(source: str, **figures: tuple[float, ...]) -> tuple[Published, ...]:
    """Figures at 1, 10 and 50 items per class, by data set."""
    return tuple(
        Published(dataset, ipc, accuracy, None, "E-mtt", source)
        for dataset, accuracies in figures.items()
        for ipc, accuracy in zip((1, 10, 50), accuracies)
    )


FYI = Recipe(
    name="fyi",
    family="parametrisation",
    title="every item stands for itself and its mirror image",
    citation=_FYI,
    defaults={
        **_DM,
        "store": "mirrored",
        # The store mirrors; a random flip would undo the pairing.
        "augment": "dsa:color_crop_cutout_scale_rotate",
        "optimizer": "sgd",
        "lr": 1.0,
        "momentum": 0.5,
    },
    idea=(
        "With random flips an item and its mirror image are matched to the same thing, so a distilled item turns "
        "half left, half right. Here both stand in the set, in matching and in evaluation, and the item is "
        "free to look one way. It costs no storage."
    ),
    equation=_EQUATION + r"with $S_c = \{s, \mathrm{mirror}(s)\}$",
    cost="That of the host with twice the synthetic rows.",
    fails=(
        "Where the mirror image has another class or none: digits, letters, text. Such data sets are refused with a "
        "message; take 'pixels' or 'multi-formation' there. Little is gained on data without a left and a right."
    ),
    needs=("mirror axis",),
    published=_published(_FYI + ", each with the best of its hosts, which is not DM", cifar10=(52.5, 68.2, 75.2))
    + _published(_FYI + ", each with the best of its hosts, which is not DM", cifar100=(28.9, 45.8, 50.8)),
    departures=(
        "the host is DM, one of the paper's; its published best figures are with others",
        "the evaluation keeps its random flip, so that every method is judged by one recipe",
    ),
)

HABA = Recipe(
    name="haba",
    family="parametrisation",
    title="bases that a few shared hallucinators turn into many rows",
    citation=_HABA,
    defaults={
        **_DM,
        "store": "hallucinator",
        "store_options": {"hallucinators": 5, "channels": 3, "kernel": 3},
        **_ADAM,
    },
    idea=(
        "A set is the product of bases, which carry a class, and hallucinators, which carry what classes share: "
        "each hallucinator scales and shifts the encoded base in its own way and decodes it to a row. Every base "
        "meets every hallucinator, so five hallucinators give five rows for a base."
    ),
    equation=_EQUATION + r"with $s_{jh} = D(a_h \odot E(z_j) + b_h)$",
    cost=(
        "That of the host with as many times the synthetic rows as there are hallucinators. Their maps take the bytes "
        "of about ten items, whatever the number of classes."
    ),
    fails=(
        "Small budgets, where the maps leave no room for the bases: with ten classes they are about one item "
        "per class, so at ipc 1 bases and maps are stored smaller (store_options.share). Take 'dm' there if it is "
        "worse. Federated clients with few classes, for the same reason."
    ),
    needs=("cell axes",),
    expense="medium",
    presets=(
        Preset(
            {"store_options": {"hallucinators": 5, "channels": 3, "kernel": 3, "share": 0.5}},
            ipc=(1,),
            source="ours: bases of full size leave no room for hallucinators",
        ),
        laptop(
            steps=100,
            objective_options=_FEWER_ROWS,
            store_options={"hallucinators": 3, "channels": 1, "kernel": 3, "share": 0.75},
        ),
    ),
    published=_published(
        _HABA + "; with one more item per class, which the hallucinators take", cifar10=(48.3, 69.9, 74.0)
    )
    + _published(_HABA + "; with one more item per class, which the hallucinators take", cifar100=(33.4, 40.2, 47.0)),
    departures=(
        _MTT_HOST,
        "hallucinators count in the budget; the paper grants them an item per class on top",
        "every base is decoded by all hallucinators at every step, where the code draws two: a class mean needs all",
        "the two losses that keep hallucinators apart are left out: they need an extractor trained against the set, "
        "a second player that no part of a recipe holds yet",
        "hallucinators start near the identity with a little noise, not at random weights, so that a short run "
        "starts from real rows",
        "convolutions have no bias; the shift maps hold it",
        _ADAM_WHY,
    ),
)

FRED = Recipe(
    name="fred",
    family="parametrisation",
    title="only the frequencies that matter in a class are stored",
    citation=_FRED,
    defaults={
        **_DM,
        "store": "dct",
        "store_options": {"share": 0.25, "by": "variance"},
        "optimizer": "sgd",
        "lr": 1.0,
        "momentum": 0.5,
    },
    idea=(
        "Neighbouring values of an item repeat each other; its cosine transform does not. Each class keeps the few "
        "frequencies in which its rows differ most, the same for all its items, and the bytes saved hold more "
        "items. The transform is orthonormal, so a step size for values fits coefficients."
    ),
    equation=_EQUATION + r"with $s = C^\top (m_c \odot F_s)\, C$",
    cost="That of the host with 1/share times the synthetic rows; the transform is two small matrix products.",
    fails=(
        "Items whose detail is fine or which are small: on 8x8 digits a quarter of the frequencies chosen by variance "
        "loses what the rows of a class have in common, and the set is far worse than random items. "
        "Choose by energy there, as the preset does, or take 'haba' or 'auto-palette'."
    ),
    needs=("cell axes",),
    presets=(
        laptop(steps=100, objective_options=_FEWER_ROWS, store_options={"share": 0.234, "by": "energy"}),
        Preset(
            {"store_options": {"share": 0.47, "by": "energy"}}, ("digits",), (1,), source="ours, best of three shares"
        ),
    ),
    published=_published(
        _FRED, mnist=(95.8, 97.6), fashion=(84.6, 89.1), cifar10=(60.6, 70.3, 75.8), cifar100=(34.6, 42.7, 47.8)
    ),
    departures=(
        _MTT_HOST,
        "a quarter of the frequencies everywhere; the paper sets their number for each data set and budget",
        "the numbers of the kept frequencies count in the budget, which costs up to one item in twenty",
        "on digits frequencies are chosen by energy, because variance does not see the class mean",
    ),
)

NSD = Recipe(
    name="nsd",
    family="parametrisation",
    title="the whole set is one tensor of low rank along items and axes",
    citation=_NSD,
    defaults={
        **_DM,
        "store": "basis",
        "store_options": {"rank": 128, "share": 0.5},
        **_ADAM,
    },
    idea=(
        "Items of all classes are combinations of a few shared basis elements, which are themselves of low rank "
        "along each cell axis: a core and one factor matrix per axis. Classes share what they have in common, and an "
        "item costs only its coefficients."
    ),
    equation=_EQUATION + r"with $S = G \times_1 A \times_2 U \times_3 V$",
    cost="That of the host with many more synthetic rows; decoding is three small matrix products.",
    fails=(
        "A rank that does not fit the budget: too small a rank gives many items that all look alike, too large a one "
        "few items. Raise store_options.rank with ipc. Unlike classes share little, so at ipc 1 it may not "
        "beat 'dm'."
    ),
    needs=("cell axes",),
    presets=(
        Preset({"store_options": {"rank": 32, "share": 0.5}}, ipc=(1,), source="ours, for ten classes"),
        Preset({"store_options": {"rank": 512, "share": 0.5}}, ipc=(50,), source="ours, for ten classes"),
        Preset({"store_options": {"rank": 128, "share": 0.5}}, ("cifar100",), (1,), source="ours"),
        Preset({"store_options": {"rank": 512, "share": 0.5}}, ("cifar100",), (10,), source="ours"),
        laptop(steps=100, objective_options=_FEWER_ROWS, store_options={"rank": 16, "share": 1.0}),
        Preset(
            {"store_options": {"rank": 10, "share": 0.6}},
            ("digits",),
            (1,),
            source="ours, as many bytes as 64 values per class allow",
        ),
    ),
    published=_published(_NSD, cifar10=(68.5, 73.4, 75.2), cifar100=(36.5, 46.1)),
    departures=(
        _MTT_HOST,
        "without the term that guides by real data, whose weight the paper's sources do not confirm",
        "the channel axis is not decomposed: of one or three channels there is nothing to gain",
        "ranks are ours; the paper's tensor shapes are not confirmed",
        "starts from the best approximation of real rows instead of random tensors",
        _ADAM_WHY,
    ),
)

DDIF = Recipe(
    name="ddif",
    family="parametrisation",
    title="each item is a small network from a position to the values there",
    citation=_DDIF,
    defaults={
        **_DM,
        "store": "field",
        "store_options": {"width": 6, "layers": 2, "omega_first": 30.0, "omega": 10.0},
        "optimizer": "adam",
        "lr": 0.003,
    },
    idea=(
        "A sine network of a few dozen weights stands for an item of thousands of values: its output at every "
        "position is the item. Weights are first fitted to real items and then learned through the host's objective. "
        "The size does not depend on the resolution."
    ),
    equation=_EQUATION + r"with $s(p) = W_L \sin(\omega(\dots \sin(\omega_0 (W_0 p + b_0)))) + b_L$",
    cost=(
        "That of the host with many more synthetic rows, and the fit of the start: seconds for small items. Decoding "
        "is a batched matrix product over all items."
    ),
    fails=(
        "Small items: on 8x8 digits a network that fits has nearly as many weights as the item has values, so nothing "
        "is saved; there it is about as good as random items at ipc 10 and below 'dm' at ipc 1."
    ),
    needs=("cell axes",),
    expense="medium",
    presets=(
        *(
            Preset(
                {"store_options": {"width": width, "layers": 2, "omega_first": 30.0, "omega": 10.0}},
                (dataset,),
                (ipc,),
                source="the paper's widths",
            )
            for dataset, widths in (("cifar10", (6, 6, 20)), ("cifar100", (10, 15, 30)))
            for ipc, width in zip((1, 10, 50), widths)
        ),
        laptop(
            steps=100,
            objective_options=_FEWER_ROWS,
            store_options={"width": 5, "layers": 2, "omega_first": 30.0, "omega": 10.0},
        ),
    ),
    published=_published(_DDIF, cifar10=(66.5, 74.0, 77.5), cifar100=(42.1, 46.0, 49.9)),
    departures=(
        "the host is DM, one of the paper's; the published figures are with trajectory matching",
        "the paper's two hidden layers are read as two sine layers in all",
        "the step sizes of the fit and of the weights are ours, chosen on digits",
    ),
)

AUTO_PALETTE = Recipe(
    name="auto-palette",
    family="parametrisation",
    title="each item is a few learned colours and an index into them for every position",
    citation=_PALETTE,
    defaults={
        **_DM,
        "store": "palette",
        "store_options": {"colours": 64},
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.5,
    },
    idea=(
        "Few colours carry an item. With 64 of them a position costs six bits instead of its channels' values, and "
        "the bytes saved hold more items. Colours are learned through the host's objective."
    ),
    equation=_EQUATION + r"with $s(p) = \mathrm{colour}_{s,\,i_s(p)}$",
    cost="That of the host with several times the synthetic rows; decoding is a look-up.",
    fails=(
        "As the assignment of positions to colours is that of the initial real items, it gains by holding more of "
        "them rather than by learning: a set that must look like no real item is out of its reach. Items that need "
        "fine shades show bands."
    ),
    needs=("two axes",),
    presets=(
        Preset({"store_options": {"colours": 16}}, ("mnist", "fashion"), source="ours: grey levels"),
        laptop(steps=100, objective_options=_FEWER_ROWS, store_options={"colours": 4}),
    ),
    published=_published(_PALETTE, cifar10=(58.6, 74.3, 79.4), cifar100=(38.0, 52.6, 53.3)),
    departures=(
        "the assignment of positions to colours is k-means over the initial item and stays; AutoPalette learns it by "
        "a network with losses of its own, and starts from a graph-cut selection",
        "the host is DM; the published figures are with DATM's trajectory matching",
        "every item has a palette of its own, counted in the budget at 32 bits a value, and indices at 1, 2, 4 or 8 "
        "bits; the paper counts bits of 8-bit images",
    ),
)
