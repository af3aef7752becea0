"""Gradient matching: a network trained on the set should move as one trained on the data does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddfed.recipes.base import Preset, Published, Recipe, laptop

_DC = "Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021"
_DSA = "Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021"
_DCC = "Lee, Chun, Jung, Yun and Yoon, Dataset Condensation with Contrastive Signals, ICML 2022"
_IDC = "Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization, ICML 2022"
_DREAM = (
    "Liu, Gu, Wang, Zhu, Jiang and You, DREAM: Efficient Dataset Distillation by Representative Matching, ICCV 2023"
)
_ACC = "Zhang et al., Accelerating Dataset Distillation via Model Augmentation, CVPR 2023"
_LCMAT = "Shin, Bae, Shin, Joo and Moon, Loss-Curvature Matching for Dataset Selection and Condensation, AISTATS 2023"

_NEEDS = ("second order", "networks whose rows are independent")

#: (networks' length, epochs between outer steps) by items per class: the DC line's (outer, inner).
_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10), 100: (100, 2)}
_NETWORKS = 1000


def _loops(table: Mapping[int, tuple[int, int]], source: str) -> tuple[Preset, ...]:
    return tuple(
        Preset(
            {"steps": _NETWORKS * outer, "pool_options": {"length": outer, "epochs": inner}},
            ipc=(ipc,),
            source=source,
        )
        for ipc, (outer, inner) in table.items()
    )


def _published(
    source: str, protocol: str, **figures: Mapping[int, tuple[float, float | None]]
) -> tuple[Published, ...]:
    """Figures by data set and items per class: (accuracy, spread)."""
    return tuple(
        Published(dataset, ipc, accuracy, spread, protocol, source)
        for dataset, found in figures.items()
        for ipc, (accuracy, spread) in found.items()
    )


def _at(one: float | None, ten: float | None, fifty: float | None) -> dict[int, tuple[float, float | None]]:
    return {ipc: (acc, None) for ipc, acc in zip((1, 10, 50), (one, ten, fifty)) if acc is not None}


#: DC with all its parts; its descendants say what they change.
_DC_PARTS: dict[str, Any] = {
    "objective": "gradient",
    "objective_options": {"distance": "rows", "layers": "weights", "rows": 256},
    "pool": "RS",
    "pool_options": {"length": 10, "epochs": 50, "batch": 256, "lr": 0.01, "momentum": 0.0},
    "store": "pixels",
    "labels": "hard",
    "augment": "none",
    "init": "noise",
    "scope": "joint",
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.5,
    "steps": 10 * _NETWORKS,
    "protocol": "E-dc",
}
#: Fewer networks, so longer steps.
_RS_LAPTOP: dict[str, Any] = {
    "steps": 150,
    "lr": 3.0,
    "objective_options": {"rows": 64},
    "pool_options": {"length": 10, "epochs": 5},
}
_DC_EQUATION = (
    r"$\min_S E_{\theta_0} \sum_t \sum_c D(\nabla_\theta \ell(S_c; \theta_t), \nabla_\theta \ell(T_c; \theta_t))$ with "
    r"$D(g, h) = \sum_{\mathrm{rows}\ i} (1 - \cos(g_i, h_i))$ over the output rows of every weight tensor"
)
_DC_COST = (
    "For each class and outer step one first-order pass of the real rows (3 forwards each) and one second-order pass "
    "of the synthetic ones (about 8), then epochs of training on the set. Memory is that of syn_chunk rows "
    "differentiated twice, whatever the number of classes."
)
_DC_FAILS = (
    "At large budgets (50 and more items per class) it falls behind trajectory matching and costs more than "
    "distribution matching. Networks with BatchNorm are refused. The first tenth to fifth of the steps gives most of "
    "the accuracy. Short runs at ten items per class, such as the digits preset, come out near random items; starting "
    "from noise they stay below."
)
_DC_DEPARTURES = (
    "networks with BatchNorm are refused; the published code freezes their statistics after a forward of real rows",
    "several classes pass the network together when small, which is exact without BatchNorm",
)

DC = Recipe(
    name="dc",
    family="gradients",
    title="match the gradients of each class along a training of the network on the set",
    citation=_DC,
    defaults=_DC_PARTS,
    idea=(
        "If, at every network met while training on the synthetic set, both sets push the weights in the same "
        "direction, training on the small set ends where training on the large one does. Directions are compared "
        "class by class and output unit by output unit, by their cosine. Networks start at random and are trained on "
        "the set itself between outer steps, then are replaced."
    ),
    equation=_DC_EQUATION,
    cost=_DC_COST,
    fails=_DC_FAILS,
    needs=_NEEDS,
    expense="high",
    presets=(
        *_loops(_LOOPS, "authors' code"),
        laptop(**_RS_LAPTOP),
    ),
    published=_published(
        _DC,
        "E-dc",
        mnist=_at(91.7, 97.4, 98.8),
        fashion=_at(70.5, 82.3, 83.6),
        cifar10={1: (28.3, 0.5), 10: (44.9, 0.5), 50: (53.9, 0.5)},
        cifar100=_at(12.8, 25.2, None),
    ),
    departures=_DC_DEPARTURES,
)

DSA = Recipe(
    name="dsa",
    family="gradients",
    title="DC with the same random augmentation on the real and the synthetic rows of a class",
    citation=_DSA,
    defaults={**_DC_PARTS, "augment": "dsa", "init": "random", "protocol": "E-dsa"},
    idea=(
        "Both sides of a class undergo one transform, drawn anew at every step, so the set learns what remains true "
        "under augmentation and can then be trained on with augmentation. Between outer steps the network is trained "
        "with draws of their own for each row."
    ),
    equation=_DC_EQUATION
    + r", with $S_c$ and $T_c$ replaced by $A_\omega(S_c)$ and $A_\omega(T_c)$ for one draw $\omega$",
    cost=_DC_COST,
    fails=_DC_FAILS,
    needs=_NEEDS,
    expense="high",
    presets=(
        *_loops(_LOOPS, "authors' code"),
        laptop(**_RS_LAPTOP),
    ),
    published=_published(
        _DSA,
        "E-dsa",
        mnist=_at(88.7, 97.8, 99.2),
        fashion=_at(70.6, 84.6, 88.7),
        cifar10={1: (28.8, 0.7), 10: (52.1, 0.5), 50: (60.6, 0.5)},
        cifar100={1: (13.9, 0.3), 10: (32.3, 0.3), 50: (42.8, 0.4)},
    ),
    departures=_DC_DEPARTURES,
)

_JOINT = {"distance": "rows", "layers": "weights", "rows": 256, "joint": True, "warm_up": [250, 10]}
_DCC_IDEA = (
    "Class by class, what all classes share dominates their gradients. The gradient over all classes together keeps "
    "what tells them apart, because what they share cancels in it. The first ten steps of the first 250 networks "
    "stay class by class, which steadies the start."
)
_DCC_EQUATION = (
    r"$\min_S E_{\theta_0} \sum_t "
    r"D(\nabla_\theta \ell(S; \theta_t), \frac{1}{K}\sum_c \nabla_\theta \ell(T_c; \theta_t))$"
)
_DCC_COST = (
    "Less than DC: one synthetic gradient for all classes instead of one for each, taken in parts of syn_chunk rows."
)
_DCC_FAILS = (
    "The joint loss is one distance, not one for each class: at the same step size items move about as many times "
    "more slowly as there are classes, so short runs change little after the warm-up. With one class it is DC."
)
_DCC_LOOPS = {**_LOOPS, 1: (10, 5)}

DCC = Recipe(
    name="dcc",
    family="gradients",
    title="DC with one gradient over all classes, so that what separates them counts",
    citation=_DCC,
    defaults={**_DC_PARTS, "objective_options": _JOINT, "init": "random"},
    idea=_DCC_IDEA,
    equation=_DCC_EQUATION,
    cost=_DCC_COST,
    fails=_DCC_FAILS,
    needs=_NEEDS,
    expense="high",
    presets=(
        *_loops(_DCC_LOOPS, "authors' code"),
        laptop(**{**_RS_LAPTOP, "objective_options": {"rows": 64, "warm_up": [5, 10]}}),
    ),
    published=_published(_DCC, "E-dc", cifar10=_at(32.9, 49.4, 61.6)),
    departures=_DC_DEPARTURES,
)

DSAC = Recipe(
    name="dsac",
    family="gradients",
    title="DCC with siamese augmentation, each class with a draw of its own",
    citation=_DCC,
    defaults={**_DC_PARTS, "objective_options": _JOINT, "augment": "dsa", "init": "random", "protocol": "E-dsa"},
    idea=_DCC_IDEA + " Each class undergoes a transform of its own, the same on both sides.",
    equation=_DCC_EQUATION + r", with $A_{\omega_c}$ applied to $S_c$ and $T_c$",
    cost=_DCC_COST,
    fails=_DCC_FAILS,
    needs=_NEEDS,
    expense="high",
    presets=(
        *_loops(_DCC_LOOPS, "authors' code"),
        laptop(**{**_RS_LAPTOP, "objective_options": {"rows": 64, "warm_up": [5, 10]}}),
    ),
    published=_published(_DCC, "E-dsa", cifar10=_at(34.0, 54.5, 64.2), cifar100=_at(14.6, 33.5, 39.3)),
    departures=_DC_DEPARTURES,
)

LCMAT = Recipe(
    name="lcmat",
    family="gradients",
    title="DSA with a term for the curvature of the loss: the spread of the last layer's gradients",
    citation=_LCMAT,
    defaults={**DSA.defaults, "objective_options": {**_DC_PARTS["objective_options"], "curvature": 0.01}},
    idea=(
        "Equal gradients at a network say nothing about its neighbours. The gap of the losses' curvatures bounds how "
        "far the two can drift apart nearby, and the variance of the gradients of single rows stands in for the "
        "curvature. In the last layer these are outer products in closed form."
    ),
    equation=(
        r"$D(\bar g_T, \bar g_S) + \frac{\rho}{2} \lVert \mathrm{Var}_i(g_{T,i}) - \mathrm{Var}_i(g_{S,i}) \rVert_1$, "
        "the variances over rows, of the last layer"
    ),
    cost=_DC_COST + " The term adds two matrix products of the size of the head.",
    fails="With one item per class its variance is zero, and the method is DSA. " + _DC_FAILS,
    needs=(*_NEEDS, "linear head"),
    expense="high",
    presets=DSA.presets,
    departures=(
        *_DC_DEPARTURES,
        "the authors' condensation code is not public: the host (DSA's schedule) and rho = 0.01, their value for "
        "selection, are our choice, and no published figure is held against it",
    ),
)

#: Variance of the values that a network sees, by data set: IDC's step sizes are for values in [0, 1], and a step of
#: standardised values is larger by 1 / variance for the same move.
_VARIANCE = {"cifar10": 0.0404, "cifar100": 0.0712, "mnist": 0.0949, "fashion": 0.1246}


def _idc_presets(base: float) -> tuple[Preset, ...]:
    """IDC's step sizes and distances by data set and items per class.

    Args:
        base: step size for ten items per class on colour images.
    """
    presets = []
    for dataset, variance in _VARIANCE.items():
        grey = dataset in ("mnist", "fashion")
        own: dict[str, Any] = {"objective_options": {"distance": "l1"}, "pool_options": {"steps": 8}} if grey else {}
        for ipc in (1, 10, 20, 50):
            lr = (1e-4 if grey else base) * ipc / 10 / variance
            presets.append(Preset({"lr": float(f"{lr:.3g}"), **own}, (dataset,), (ipc,), source="authors' settings"))
    return tuple(presets)


_IDC_PARTS: dict[str, Any] = {
    "objective": "gradient",
    "objective_options": {"distance": "mse", "layers": "hidden", "rows": 64, "syn_rows": 128},
    "pool": "RT",
    "pool_options": {
        "length": 100,
        "steps": 32,
        "batch": 64,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "augment": "idc:color_crop",
        "cutmix": 1.0,
    },
    "store": "multi-formation",
    "store_options": {"factor": 2},
    "labels": "hard",
    "augment": "idc-match",
    "init": "random",
    "scope": "sequential",
    "optimizer": "sgd",
    "lr": 0.124,
    "momentum": 0.5,
    "clamp": True,
    "steps": 200_000,
    "protocol": "E-idc",
}
_IDC_EQUATION = (
    r"$\min_S E_{\theta_0} \sum_t \sum_c \lVert \nabla_\theta \ell(A_\omega(f(S_c)); \theta_t) - "
    r"\nabla_\theta \ell(A_\omega(T_c); \theta_t) \rVert^2$ over hidden layers, $f$ cutting cells and enlarging them, "
    r"$\theta_t$ trained on real data"
)
_IDC_IDEA = (
    "Networks trained on the synthetic set soon fit it, and their gradients vanish; IDC trains them on real data, "
    "strongly augmented, and compares gradients by their difference, not their angle, so that their size counts."
)
_CELLS = " Each item is a canvas of four small cells that are enlarged to rows: four times the rows in the same bytes."
_IDC_COST = (
    "The dearest of the family: for each outer step one second-order pass and one stored step for every class, and "
    "2,000 real rows of training; 2,000 networks of 100 steps. A tenth of it costs one or two points."
)
_IDC_FAILS = (
    "Step sizes fit the sum of squares of one network: another one, or another data set, needs its own. Cells need "
    "items with axes to cut, and lose detail where items are small (on 8 by 8 digits a cell has 4 by 4)."
)
_IDC_DEPARTURES = (
    (
        "values are stored standardised, not in [0, 1]; step sizes are divided by the variance of the data set, one "
        "number for all channels"
    ),
    "values are clamped after every step; the published code clamps when it takes a new network",
    "the network is not trained after the last outer step of a length, as it is given up then",
    (
        "'hidden' leaves out the head; the published code leaves out every tensor of two axes, which is the same for "
        "convnets"
    ),
    "partners of CutMix are drawn within a pass of the gate, at most distill.chunk rows",
)
_IDC_NEEDS = (*_NEEDS, "cell axes")


def _idc_laptop(**pool: Any) -> tuple[Preset, ...]:
    """Presets for digits, with step sizes in proportion to the items per class; ``pool`` for more of its options."""
    common = {
        "steps": 60,
        "lr": 0.1,
        "objective_options": {"rows": 32},
        "pool_options": {"length": 20, "steps": 4, **pool},
    }
    own = tuple(Preset({"lr": 0.03 * ipc}, ("digits",), (ipc,), source="ours") for ipc in (1, 10))
    return laptop(**common), *own


IDC = Recipe(
    name="idc",
    family="gradients",
    title="match hidden gradients of networks trained on real data, with four cells per item",
    citation=_IDC,
    defaults=_IDC_PARTS,
    idea=_IDC_IDEA + _CELLS,
    equation=_IDC_EQUATION,
    cost=_IDC_COST,
    fails=_IDC_FAILS,
    needs=_IDC_NEEDS,
    expense="high",
    presets=(
        *_idc_presets(5e-3),
        Preset({"augment": "idc:color_crop", "pool_options": {"cutmix": 0.0}}, ("mnist",), source="authors' settings"),
        *_idc_laptop(),
    ),
    published=_published(
        _IDC,
        "E-idc",
        mnist=_at(None, 98.4, 99.1),
        fashion=_at(81.0, 86.0, 86.2),
        cifar10={1: (50.6, None), 10: (67.5, 0.5), 50: (74.5, 0.1)},
        cifar100=_at(None, 45.1, None),
    ),
    departures=(*_IDC_DEPARTURES, "MNIST is evaluated with CutMix, which the paper leaves out there"),
)

IDC_I = Recipe(
    name="idc-i",
    family="gradients",
    title="IDC with plain items: one row each",
    citation=_IDC,
    defaults={**_IDC_PARTS, "store": "pixels", "store_options": {}},
    idea=_IDC_IDEA,
    equation=_IDC_EQUATION.replace(" $f$ cutting cells and enlarging them,", "").replace("f(S_c)", "S_c"),
    cost=_IDC_COST,
    fails=_IDC_FAILS.partition(" Cells need")[0],
    needs=_NEEDS,
    expense="high",
    presets=(*_idc_presets(5e-3), *_idc_laptop()),
    published=_published(
        _IDC,
        "E-idc",
        mnist=_at(None, 98.0, 98.8),
        fashion=_at(None, 85.3, 89.1),
        cifar10=_at(36.7, 58.3, 69.5),
        cifar100=_at(None, 36.6, None),
    ),
    departures=_IDC_DEPARTURES,
)

DREAM = Recipe(
    name="dream",
    family="gradients",
    title="IDC shown the rows nearest the k-means centres of a class instead of random ones",
    citation=_DREAM,
    defaults={
        **_IDC_PARTS,
        "objective_options": {**_IDC_PARTS["objective_options"], "rows": 128},
        "init": "kmeans",
        "sampler": "kmeans",
        "sampler_options": {"every": 10},
    },
    idea=(
        "Random real batches give gradients that jump about, and rows at the border of a class large ones that "
        "mislead. The rows nearest the centres of as many clusters cover the class evenly: gradients are steadier, "
        "and far fewer steps are needed. All else is IDC."
    ),
    equation=_IDC_EQUATION + r", $T_c$ the rows nearest the centres of 128 clusters of the class, anew every 10 steps",
    cost=(
        "IDC's, and every ten steps an embedding and a clustering of each class; the clusters start from the last "
        "ones. IDC's accuracy is there after a fifth to a tenth of its steps."
    ),
    fails=_IDC_FAILS + " Clusters need single rows: a gate that answers sums only refuses.",
    needs=(*_IDC_NEEDS, "single rows"),
    expense="high",
    presets=(
        *_idc_presets(5e-3),
        Preset({"augment": "idc:color_crop", "pool_options": {"cutmix": 0.0}}, ("mnist",), source="authors' settings"),
        *_idc_laptop(),
        Preset({"init_options": {"train_steps": 60}}, ("digits",), source="ours"),
    ),
    published=_published(
        _DREAM,
        "E-idc",
        fashion=_at(81.3, 86.4, 86.8),
        cifar10=_at(51.1, 69.4, 74.8),
        cifar100=_at(29.5, 46.8, 52.6),
    ),
    departures=(
        *_IDC_DEPARTURES,
        "a clustering starts from the centres of the one before: the same fixed points in fewer iterations",
    ),
)

ACC_DD = Recipe(
    name="acc-dd",
    family="gradients",
    title="IDC from a few early-stage networks with noise on their weights",
    citation=_ACC,
    defaults={
        **_IDC_PARTS,
        "pool": "PW",
        "pool_options": {
            **_IDC_PARTS["pool_options"],
            "networks": 5,
            "training": {"steps": 1563, "batch": 64, "augment": "idc:color_crop"},
            "noise": [0.01, 0.09],
        },
        "lr": 0.248,
        "steps": 40_000,
    },
    idea=(
        "Training thousands of fresh networks is most of IDC's cost. A handful, trained for two epochs, is varied "
        "instead: a random direction is added to the weights, each filter's part as long as the filter times 1 to 9 "
        "%. Networks early in training give the most telling gradients, so far fewer outer steps suffice."
    ),
    equation=_IDC_EQUATION.replace(
        "trained on real data", "early-stage with noise of its filters' norms, then trained on"
    ),
    cost="A fifth of IDC's outer steps, after five short trainings on real data.",
    fails=_IDC_FAILS + " With few networks in the bank the set fits them, not the method.",
    needs=_IDC_NEEDS,
    expense="high",
    presets=(
        *_idc_presets(1e-2),
        *_idc_laptop(networks=3, training={"steps": 20}),
    ),
    published=_published(_ACC, "E-idc", cifar10=_at(49.2, 67.1, 73.8), cifar100=_at(29.8, 45.6, 52.6)),
    departures=(
        *_IDC_DEPARTURES,
        "the networks of the bank differ by their seed alone; the authors vary step size and augmentation as well",
        "a network that returns gets new noise and starts again from its stored weights",
    ),
)
