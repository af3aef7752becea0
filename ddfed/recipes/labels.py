"""Labels that carry more than a class.

What a set says about an item is part of what is stored. These methods keep the items of another (random ones, or
DM's) and change the labels alone, so that the worth of labels can be told from the worth of items.
"""

from __future__ import annotations

from ddfed.recipes.base import Recipe, laptop
from ddfed.recipes.teacher import RECOVER, VIEWS

_QIN = "Qin, Deng and Alvarez-Melis, A Label is Worth a Thousand Images in Dataset Distillation, NeurIPS 2024"
_GIFT = "Shang, Sun and Lin, GIFT: Unlocking Full Potential of Labels in Distilled Dataset, ICLR 2025"
_LADD = "Kang, Lim and Shim, Label-Augmented Dataset Distillation, WACV 2025"
_LPLD = "Xiao and He, Are Large-scale Soft Labels Necessary for Large-scale Dataset Distillation?, NeurIPS 2024"

_RANDOM = {"steps": 0, "init": "random", "store": "pixels", "protocol": "E-dsa"}
_DM = {
    "objective": "mean",
    "objective_options": {"rows": 256},
    "pool": "R",
    "store": "pixels",
    "augment": "dsa",
    "init": "random",
    "scope": "joint",
    "optimizer": "sgd",
    "lr": 1.0,
    "momentum": 0.5,
    "steps": 20_000,
    "protocol": "E-dsa",
}
_SHORT_DM = {"steps": 150, "objective_options": {"rows": 64}}

LABEL_ONLY = Recipe(
    name="label-only",
    family="labels",
    title="real items drawn at random with the soft labels of an early-stopped network",
    citation=_QIN,
    defaults={**_RANDOM, "labels": "teacher", "teacher": {"steps": 300}},
    idea=(
        "No item is synthesised: random real ones get the probabilities of a network that was trained on all real "
        "data and stopped early. How much of a soft-label method this alone reaches is the first thing to ask of it, "
        "so `ddfed evaluate` puts the same row beside every result."
    ),
    equation=r"$y_i = \mathrm{softmax}(f_{\theta_t}(x_i))$, $x_i$ random; student: $-\sum_c y_{ic} \log p_c(x_i)$",
    cost="one short training on real data; one forward pass over the set; classes x 4 bytes of labels per item",
    fails=(
        "At one item per class, and where a network reads the classes off a few items anyway (digits: no better than "
        "random items with hard labels), soft labels add next to nothing. A network stopped too early teaches its own "
        "ignorance: choose `distill.teacher.steps` on held-out data."
    ),
    expense="low",
    presets=(laptop(teacher={"steps": 200}),),
    departures=(
        "the teacher's steps are a setting instead of a sweep over saved states, which the paper chooses by budget",
        "SGD with step size 0.01 instead of 0.001: at equal skill fewer steps are needed",
    ),
)

GIFT = Recipe(
    name="gift",
    family="labels",
    title="DM's items with a network's soft labels, refined by the class and learned by cosine distance",
    citation=_GIFT,
    defaults={**_DM, "labels": "gift", "teacher": {"steps": 300}},
    idea=(
        "Cross-entropy on soft labels depends heavily on the optimiser. GIFT adds a little of the smoothed hard class "
        "to the teacher's label and lets the student turn its logits into that direction, whatever their length."
    ),
    equation=r"$1 - \cos(z, \; y / |y| + 0.1 \, s / |s|)$, $s$ the smoothed one-hot class",
    cost="DM's, and one training on real data; nothing more in training the student",
    fails=(
        "Cosine distance leaves the length of the logits free, so the student's probabilities mean nothing: ECE and "
        "NLL in the table are far worse than under cross-entropy. Calibrate afterwards or use 'teacher' labels."
    ),
    expense="low",
    presets=(laptop(**_SHORT_DM, teacher={"steps": 200}),),
    departures=(
        "the items are DM's; the paper adds the loss to sets of others (`--set distill.labels=gift` does so here)",
        "one static label per item instead of one per epoch and view",
    ),
)

LADD = Recipe(
    name="ladd",
    family="labels",
    title="DM's items with soft labels of a grid of their windows as well",
    citation=_LADD,
    defaults={**_DM, "labels": "dense", "labels_options": {"grid": 5, "share": 0.625}, "teacher": {"steps": 300}},
    idea=(
        "A label costs a few bytes, an item thousands. So each item is stored with labels of twenty-five windows of "
        "it, which are cut out again when a student is trained: many views, each with a label that fits it."
    ),
    equation=(
        r"$\sum_i \big[ \ell(x_i, f_T(x_i)) + \sum_w \ell(R_w x_i, f_T(R_w x_i)) \big]$, $R_w$ cuts window $w$ and "
        r"resizes it"
    ),
    cost="DM's; 25 x classes x 4 bytes of labels per item; a student's epoch has 26 times the rows",
    fails=(
        "Where a window no longer shows what the whole shows (digits of eight pixels a side) most rows are noise with "
        "a confident label. An epoch is 26 times as long: compare at equal steps as well. With four windows and a "
        "teacher of 100 steps digits at ten per class fall a point below random items."
    ),
    needs=("cell axes",),
    expense="medium",
    presets=(laptop(**_SHORT_DM, labels_options={"grid": 3, "share": 0.75}, teacher={"steps": 200}),),
    departures=(
        "the items are DM's; the paper distils with a method of its own choice",
        "five by five windows of 62.5 % are the constants as commonly reported, not checked against code",
    ),
)

LPLD = Recipe(
    name="lpld",
    family="labels",
    title="items recovered class by class from a teacher, with a small pool of labelled batches that training reuses",
    citation=_LPLD,
    defaults={
        **RECOVER,
        "objective_options": {"weight": 0.01, "groups": "class", "classwise": 1.0},
        "labels_options": {**{k: v for k, v in VIEWS.items() if k != "epochs"}, "blocks": 25},
    },
    idea=(
        "Labels of every view of every epoch take more space than the items, because items of a class recovered in "
        "mixed batches are alike and need many labels to differ. Recover each class in batches of its own, towards "
        "the statistics that its real rows have in the teacher; then a random few labelled batches, gone through "
        "again and again, are enough."
    ),
    equation=(
        r"$\mathrm{CE}(f_T(x), c) + 0.01 \sum_l w_l \big( |\mu_l(X_c) - \mu_{l,c}^*|_2 + |\sigma_l^2(X_c) - "
        r"\sigma_{l,c}^{2*}|_2 \big)$; student: $\sum_b \ell(A_{u_b} x_{I_b}, f_T(A_{u_b} x_{I_b}))$ over a pool of "
        r"blocks $b = (I_b, u_b)$, cyclically"
    ),
    cost=(
        "one training of the teacher and one pass over the real data for the statistics of classes; steps x items "
        "passes of the teacher; blocks x batch x (2 x classes + draw and mixing) bytes of labels"
    ),
    fails=(
        "From noise, digits at ten per class stay fifteen points below random items; the laptop preset therefore "
        "starts from real ones and ends near them. A pool of few batches teaches little where items are few. "
        "At one item per class a class's batch is one item, whose variance over rows is none. "
        "Training sees the pool's augmentation alone: the recipe's own and CutMix have no say."
    ),
    needs=("batch norms",),
    expense="medium",
    presets=(
        laptop(
            network="convnet-bn",
            steps=200,
            init="random",
            lr=0.05,
            augment="none",
            objective_options={"weight": 1.0},
            teacher={"steps": 200, "lr": 0.05, "augment": "none"},
            labels_options={"blocks": 100, "batch": 50, "temperature": 4.0},
        ),
    ),
    departures=(
        "on CIFAR the recovery's constants are SRe2L's; the paper has ImageNet, Tiny-ImageNet and CIFAR-100 settings "
        "that were not checked",
        "the pool is drawn at its size instead of being pruned to it, which is the same for independent draws",
        "all views are labelled once the items are finished, by the teacher that recovered them",
    ),
)
