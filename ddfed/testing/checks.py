"""The checks. Rules: docs/reference/contracts.md."""

from __future__ import annotations

import math
import tempfile
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ddfed.artifact import TENSORS, SyntheticSet
from ddfed.data import RealData, Task
from ddfed.distill import distill
from ddfed.domain import Domain, Network, reset
from ddfed.errors import ArtifactError, ConfigError, DdfedError, UnknownNameError
from ddfed.evaluate import Bench
from ddfed.files import tensors_from_bytes
from ddfed.gate import PlainGate
from ddfed.recipes import Recipe
from ddfed.registry import registry
from ddfed.seeds import Streams, isolated
from ddfed.settings import PartSettings
from ddfed.store import HardLabels, Store
from ddfed.store.base import UNSEEDED

Check = Callable[[Any], None]
#: The folder a set was exported to -> the rows that a network would be trained on, and the class of each.
Reader = Callable[[Path], tuple[torch.Tensor, torch.Tensor]]
_SEE = "see docs/reference/contracts.md"


def _require(holds: bool, rule: str, seen: object) -> None:
    if not holds:
        raise AssertionError(f"{rule}; seen: {seen} ({_SEE})")


# --- domains ---------------------------------------------------------------------------------------------------


class DomainCase:
    """A domain with a small task it loads.

    Args:
        domain: the adapter.
        dataset: a small data set of it.
        root: its folder, if it needs one.
        options: the domain's settings.
        networks: networks to check; the default one only when empty.
        protocol: by which networks are trained where accuracies are compared.
        reference: accuracy in percent that the judging network reaches on all training rows; None to leave that out.
        readers: of the export formats that lose nothing, by their names.
        parts: settings of the sets that are distilled here, such as another store.
    """

    def __init__(
        self,
        domain: Domain,
        dataset: str,
        root: Path | None = None,
        options: dict[str, Any] | None = None,
        networks: Iterable[str] = (),
        protocol: str = "E-dc",
        reference: float | None = None,
        readers: Mapping[str, Reader] | None = None,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        self.domain, self.dataset, self.root, self.options = domain, dataset, root, options or {}
        self.task: Task = domain.load(dataset, root, self.options)
        self.networks = tuple(networks) or (domain.default_network(self.task.info),)
        self.reference, self.readers = reference, dict(readers or {})
        self.parts = {"ipc": 2, "steps": 2, "lr": 0.1, "network": self.networks[0], "protocol": protocol}
        self.parts |= parts or {}

    def __repr__(self) -> str:
        store = f" as {self.parts['store']}" if "store" in self.parts else ""
        return f"{self.domain.name}/{self.dataset}{store}"

    def rows(self, count: int) -> Any:
        """Real rows as a network sees them: a tensor, or an object of the domain's."""
        return self.task.train.batch(torch.arange(count)).inputs

    def items(self, count: int, coupled: bool = False) -> torch.Tensor:
        """The same rows as a store is filled with them."""
        return self.task.train.items(torch.arange(count), coupled)

    def stored(self, count: int) -> tuple[torch.Tensor, ...]:
        """Rows in all forms that stores of the domain decode to."""
        forms = (False,) if self.domain.capabilities.independent_rows else (False, True)
        return tuple(self.items(count, coupled) for coupled in forms)

    def build(self, name: str, seed: int = 0) -> Network:
        with isolated(seed):
            return self.domain.network(name, self.task.info)

    def distilled(self, data: RealData | None = None, **parts: Any) -> SyntheticSet:
        """A set of two items a class, in two steps unless ``parts`` say otherwise."""
        settings = PartSettings(**{**self.parts, **parts})
        return distill(PlainGate(self.task.train if data is None else data), self.domain, settings, Streams(0))

    def accuracies(self, syn: SyntheticSet, *baselines: str, epochs: int | None = None) -> list[float]:
        """In percent, of one network trained on a set, and on each of some baselines."""
        bench = Bench(syn, self.task, self.domain, repeats=1, baselines=baselines, streams=Streams(0))
        return [100 * row.mean for row in bench.tables(epochs=epochs)]


def check_rows_have_the_declared_shape(case: DomainCase) -> None:
    items = case.items(3)
    _require(tuple(items.shape[1:]) == case.task.info.shape, "rows must have the shape in TaskInfo", items.shape)
    _require(items.dtype == torch.float32, "rows must be float32 in model space", items.dtype)
    _require(len(case.rows(3)) == 3, "a batch must count its rows", len(case.rows(3)))
    for stored in case.stored(3)[1:]:
        wanted = (case.task.info.shape[0] + 3,)
        _require(stored.shape[1:] == wanted, "coupled rows must be (rows, features + rows)", stored.shape)


def check_classes_are_counted_right(case: DomainCase) -> None:
    splits = [split for split in (case.task.train, case.task.test, case.task.validation) if split is not None]
    for split in splits:
        every = torch.cat(split.class_index).sort().values
        _require(torch.equal(every, torch.arange(len(split))), "each row must be in one class", len(every))
        for c, rows in enumerate(split.class_index):
            batch = split.batch(rows)
            _require(len(batch.inputs) == len(rows), "a batch must have the rows asked for", len(batch.inputs))
            _require(bool((batch.classes == c).all()), "rows of a class must have that class", batch.classes.unique())
    counts = torch.bincount(case.distilled(steps=0).labels.classes, minlength=case.task.info.num_classes)
    _require(bool((counts == 2).all()), "ipc 2 must give two items of each class", counts.tolist())


def check_loading_twice_gives_the_same_data(case: DomainCase) -> None:
    again = case.domain.load(case.dataset, case.root, case.options)
    _require(again.train.content_hash == case.task.train.content_hash, "loading must be deterministic", "hashes differ")


def check_train_and_test_share_no_row(case: DomainCase) -> None:
    def keys(data: RealData) -> list[bytes]:
        return [row.numpy().tobytes() for row in data.items(torch.arange(len(data)))]

    train = set(keys(case.task.train))
    shared = sum(key in train for key in keys(case.task.test))
    _require(shared <= len(case.task.test) * 0.01, "test rows must not be in the training split", f"{shared} shared")


def check_space_decodes_what_it_encodes(case: DomainCase) -> None:
    space, rows = case.task.info.space, case.items(4)
    back = space.encode(space.decode(rows))
    _require(torch.allclose(back, rows, atol=1e-3), "encode(decode(x)) must be x", float((back - rows).abs().max()))


def check_head_of_embed_is_forward(case: DomainCase) -> None:
    for name in case.networks:
        net = case.build(name).eval()
        rows = case.rows(3)
        _require(
            torch.allclose(net(rows), net.head(net.embed(rows)), atol=1e-5),
            f"{name}: forward must be head(embed)",
            name,
        )
        _require(
            torch.allclose(net.stages(rows)[-1], net.embed(rows), atol=1e-5),
            f"{name}: the last of stages must be embed",
            name,
        )
        _require(net.embed(rows).ndim == 2, f"{name}: embed must give (rows, width)", net.embed(rows).shape)
        _require(net(rows).shape == (3, case.task.info.num_classes), f"{name}: logits (rows, classes)", net(rows).shape)


def check_embed_has_one_width(case: DomainCase) -> None:
    """Of real rows and of stored ones, in all forms a store may give them."""
    for name in case.networks:
        net = case.build(name).eval()
        widths = {net.embed(rows).shape[1] for rows in (case.rows(4), *case.stored(4))}
        _require(len(widths) == 1, f"{name}: real and synthetic rows must embed alike", widths)


def check_same_seed_same_network(case: DomainCase) -> None:
    for name in case.networks:
        one, two = case.build(name, 1).state_dict(), case.build(name, 1).state_dict()
        _require(all(torch.equal(one[k], two[k]) for k in one), f"{name}: same seed must give the same weights", name)
        other = case.build(name, 2).state_dict()
        _require(any(not torch.equal(one[k], other[k]) for k in one), f"{name}: other seeds must differ", name)


def check_reset_equals_building_anew(case: DomainCase) -> None:
    for name in case.networks:
        fresh, net = case.build(name, 5).state_dict(), case.build(name, 6)
        with isolated(5):
            reset(net)
        same = all(torch.equal(fresh[k], v) for k, v in net.state_dict().items())
        _require(
            same, f"{name}: reset() in place must equal a fresh build; give own parameters reset_parameters()", name
        )


def check_rows_are_judged_independently(case: DomainCase) -> None:
    for name in case.networks:
        net = _without_dropout(case.build(name).train())
        if net.mixes_rows:
            continue
        gap = float((net(case.rows(6))[:2] - net(case.rows(2))).detach().abs().max())
        _require(gap < 1e-4, f"{name}: rows influence each other, so mixes_rows must be True", gap)


def _without_dropout(net: Network) -> Network:
    """What is dropped is drawn anew for every pass, and says nothing of a row's influence."""
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return net


def check_gradient_reaches_every_value(case: DomainCase) -> None:
    net = case.build(case.networks[0])
    for stored in case.stored(4):
        rows = stored.clone().requires_grad_()
        net.embed(rows).square().sum().backward()
        found = rows.grad
        _require(found is not None and bool(torch.isfinite(found).all()), "embed must be differentiable", found)
        assert found is not None
        _require(bool((found.flatten(1).abs().sum(1) > 0).all()), "every row must receive a gradient", "zeros")


def check_networks_can_be_differentiated_twice(case: DomainCase) -> None:
    """Of gradients by weights, the derivative by the rows against a difference quotient, in float64."""
    if not case.domain.capabilities.second_order:
        return
    step, generator = 1e-5, Streams(0).torch("check")
    for name in case.networks:
        net = case.build(name).double().eval()
        along = {n: _noise(w, generator) for n, w in net.named_parameters() if w.ndim > 1}
        for stored in case.stored(4):
            # Off the values that data share, such as zero, where networks may have kinks.
            rows = stored.double() + 1e-3 * torch.rand(stored.shape, generator=generator, dtype=torch.float64)
            by = _noise(rows, generator)
            if rows.shape[1:] != case.task.info.shape:
                by[:, case.task.info.shape[0] :] = 0  # a network may take what lies between rows as constant
            slope = partial(_slope, net, along, case.task.train.labels[:4])
            x = rows.clone().requires_grad_()
            exact = float((torch.autograd.grad(slope(x), x)[0] * by).sum())
            quotient = float((slope(rows + step * by) - slope(rows - step * by)).detach() / (2 * step))
            close = math.isclose(exact, quotient, rel_tol=1e-3, abs_tol=1e-6)
            _require(close, f"{name}: the second derivative must be exact", (exact, quotient))


def _slope(net: Network, along: Mapping[str, torch.Tensor], classes: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The derivative of the loss by the weights along a direction."""
    weights = [w for n, w in net.named_parameters() if n in along]
    # Weights that score neighbours have no part where there are none.
    grads = torch.autograd.grad(F.cross_entropy(net(x), classes), weights, create_graph=True, allow_unused=True)
    return torch.stack([(g * a).sum() for g, a in zip(grads, along.values()) if g is not None]).sum()


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def check_augmentation_is_shared_within_a_group(case: DomainCase) -> None:
    """Siamese: the same input in the real and in the synthetic batch must come out the same."""
    rows = case.items(1).expand(4, *case.task.info.shape).clone()
    for name in case.domain.augmentations:
        aug = case.domain.augmentation(name, case.task.info)
        if aug is None:
            continue
        for seed in range(8):
            draw = aug.draw(2, Streams(seed).torch("check"))
            few = aug(rows[:2], draw, torch.tensor([0, 1]))
            many = aug(rows, draw, torch.tensor([1, 0, 1, 0]))
            _require(torch.allclose(many[[1, 0]], few, atol=1e-6), f"{name}: one draw, one transform", seed)
            _require(many.shape == rows.shape, f"{name}: shapes must stay", many.shape)


def check_augmentation_takes_no_global_randomness(case: DomainCase) -> None:
    rows = case.items(3)
    for name in case.domain.augmentations:
        aug = case.domain.augmentation(name, case.task.info)
        if aug is None:
            continue
        results = []
        for seed in (1, 2):
            with isolated(seed):
                results.append(aug(rows, aug.draw(3, Streams(0).torch("check")), torch.arange(3)))
        _require(torch.equal(*results), f"{name}: draws must come from the generator passed", "global state matters")


def check_augmentation_accepts_no_rows(case: DomainCase) -> None:
    for name in case.domain.augmentations:
        aug = case.domain.augmentation(name, case.task.info)
        if aug is not None:
            empty = aug(case.items(1)[:0], aug.draw(2, Streams(0).torch("check")), torch.zeros(0, dtype=torch.int64))
            _require(len(empty) == 0, f"{name}: an empty batch must stay empty", empty.shape)


def check_default_network_learns(case: DomainCase) -> None:
    net = case.build(case.networks[0])
    batch = case.task.train.batch(torch.arange(min(64, len(case.task.train))))
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = HardLabels.loss(net(batch.inputs), batch.classes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    _require(
        losses[-1] < losses[0], "fifteen steps on 64 rows must lower the loss", f"{losses[0]:.3f} -> {losses[-1]:.3f}"
    )


def check_unknown_names_suggest_the_near_one(case: DomainCase) -> None:
    for call, wrong in (
        (lambda name: case.domain.network(name, case.task.info), case.networks[0] + "x"),
        (lambda name: case.domain.load(name, case.root, {}), case.dataset + "x"),
        (lambda name: case.domain.augmentation(name, case.task.info), "nonx"),
    ):
        try:
            call(wrong)
        except UnknownNameError as error:
            _require("Did you mean" in str(error), "an unknown name must suggest the near one", error)
        else:
            raise AssertionError(f"{wrong!r} was accepted ({_SEE})")
    try:
        case.domain.load(case.dataset, case.root, {"no_such_option": 1})
    except ConfigError:
        return
    raise AssertionError(f"an unknown option was accepted ({_SEE})")


def check_distilled_set_survives_save_and_load(case: DomainCase) -> None:
    syn = case.distilled()
    with tempfile.TemporaryDirectory() as folder:
        again = SyntheticSet.load(syn.save(folder))
    for mine, theirs in zip(syn.decoded(), again.decoded()):
        _require(torch.equal(mine, theirs), "a set must survive save and load bit for bit", "tensors differ")
    _require(again.content_hash == syn.content_hash, "the content hash must survive", again.content_hash)


def check_distilling_is_reproducible(case: DomainCase) -> None:
    one, two = case.distilled(), case.distilled()
    _require(one.content_hash == two.content_hash, "same seed, same set", "hashes differ")


def check_render_and_export_write_files(case: DomainCase) -> None:
    syn = case.distilled(steps=0)
    with tempfile.TemporaryDirectory() as folder:
        picture = case.domain.render(syn, Path(folder) / "picture.png")
        _require(picture.is_file() and picture.stat().st_size > 0, "render must write a file", picture)
        for fmt in case.domain.export_formats:
            written = case.domain.export(syn, Path(folder) / fmt, fmt)
            _require(bool(written) and all(p.exists() for p in written), f"export {fmt!r} must write files", written)


def check_bytes_are_those_of_the_file(case: DomainCase) -> None:
    syn = case.distilled(steps=0)
    with tempfile.TemporaryDirectory() as folder:
        content = (syn.save(folder) / TENSORS).read_bytes()
    sizes = {name: t.numel() * t.element_size() for name, t in tensors_from_bytes(content, TENSORS).items()}
    stored = sum(size for name, size in sizes.items() if name.startswith("store."))
    _require(stored == syn.store.size_bytes, "size_bytes must be what the file holds", (syn.store.size_bytes, stored))
    _require(len(content) < sum(sizes.values()) + 4096, "the file must hold no more than tensors", len(content))


def check_exports_come_back(case: DomainCase) -> None:
    """What a lossless export is read as must train a network to the very same accuracy."""
    syn = case.distilled()
    for fmt, reader in case.readers.items():
        with tempfile.TemporaryDirectory() as folder:
            case.domain.export(syn, Path(folder), fmt)
            rows, classes = reader(Path(folder))
        _require(torch.equal(rows, syn.decoded()[0]), f"export {fmt!r} must keep the rows bit for bit", rows.shape)
        _require(torch.equal(classes, syn.labels.classes), f"export {fmt!r} must keep the classes", classes)
        again = replace(syn, store=_Fixed(syn.store, rows), labels=HardLabels(classes, syn.info.num_classes))
        mine, theirs = (case.accuracies(one, epochs=5)[0] for one in (syn, again))
        _require(mine == theirs, f"export {fmt!r} must train a network alike", (mine, theirs))


class _Fixed(Store):
    """Rows as they were read, in place of those of another store."""

    name = "fixed"

    def __init__(self, like: Store, rows: torch.Tensor) -> None:
        super().__init__(like.info, like.classes)
        self.rows, self.coupled = rows, like.coupled  # type: ignore[misc]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def decode(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _require(torch.equal(items, torch.arange(self.items)), "rows that were read come together", items)
        return self.rows, items

    def fill(self, rows: torch.Tensor, streams: Streams = UNSEEDED) -> None:
        raise NotImplementedError


def check_labels_of_other_splits_do_not_leak(case: DomainCase) -> None:
    """Permuting them in place, and test rows that stand alone, must leave the distilled set bit for bit as it was.

    Choosing an iterate by validation rows (``distill.keep``) is a matter of who asks for it; here nobody does.
    """
    before = case.distilled().content_hash
    with _permuted(case):
        same = case.distilled().content_hash == before
    _require(same, "distillation must not see labels of test and validation rows", "the set changed")


@contextmanager
def _permuted(case: DomainCase) -> Iterator[None]:
    """In place, so that whoever kept a reference sees it."""
    others = [split for split in (case.task.test, case.task.validation) if split is not None]
    tensors = [split.labels for split in others]
    if case.domain.capabilities.independent_rows:
        tensors += [split.inputs for split in others]
    saved = [tensor.clone() for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.copy_(tensor[torch.randperm(len(tensor), generator=Streams(0).torch("leak"))])
        yield
    finally:
        for tensor, values in zip(tensors, saved):
            tensor.copy_(values)


def check_shuffled_labels_teach_nothing(case: DomainCase) -> None:
    """Control by random labels: what such a set teaches is chance, within three standard deviations, and less than
    what true labels do. Each class counts as one throw, because all its rows look alike.
    """
    train, chance, repeats = case.task.train, 1 / case.task.info.num_classes, 5
    true = case.accuracies(case.distilled(), epochs=_CONTROL)[0]
    found = []
    for number in range(repeats):
        order = torch.randperm(len(train), generator=Streams(0).torch("shuffled labels", number))
        found += case.accuracies(case.distilled(replace(train, labels=train.labels[order])), epochs=_CONTROL)
    mean = sum(found) / repeats
    bound = 100 * (chance + 3 * math.sqrt(chance * (1 - chance) * chance / repeats))
    _require(mean < min(bound, true), "shuffled training labels must teach chance", (found, bound, true))


#: Epochs of the control.
_CONTROL = 60


def check_full_data_reach_the_reference(case: DomainCase) -> None:
    """Guards how data are prepared."""
    if case.reference is None:
        return
    accuracy = case.accuracies(case.distilled(steps=0), "full")[1]
    _require(accuracy >= case.reference, f"all training rows must give {case.reference} %", accuracy)


# --- decoders --------------------------------------------------------------------------------------------------


class StoreCase:
    """A parametrisation on a task, made by ``make(classes)`` for items of these classes.

    Of coupled rows (`Store.coupled`) what lies between them depends on which are decoded together.
    """

    def __init__(self, name: str, make: Callable[[torch.Tensor], Store]) -> None:
        self.name, self.make = name, make

    def __repr__(self) -> str:
        return f"decoder {self.name}"

    def filled(self, items: int = 3) -> Store:
        store = self.make(torch.arange(items))
        generator = Streams(0).torch("store case")
        rows = torch.rand((items, store.seeds_per_item, *store.info.shape), generator=generator)
        if store.coupled:
            between = (torch.rand((items, items), generator=generator) < 0.5).float().triu(1)
            rows = torch.cat([rows, (between + between.T)[:, None]], 2)
        store.fill(rows)
        return store


def check_decoded_rows_fit_the_task(case: StoreCase) -> None:
    store = case.filled()
    rows, origin = store.decode(torch.arange(3))
    count = 3 * store.rows_per_item
    shape = (count, store.info.shape[0] + count) if store.coupled else (count, *store.info.shape)
    _require(tuple(rows.shape) == shape, "rows must have the task's shape", rows.shape)
    counts = torch.bincount(origin, minlength=3).tolist()
    _require(counts == [store.rows_per_item] * 3, "each item must give rows_per_item rows", counts)


def _own(store: Store, rows: torch.Tensor) -> torch.Tensor:
    """What of decoded rows is their own."""
    return rows[:, : store.info.shape[0]] if store.coupled else rows


def check_decoding_part_equals_part_of_decoding(case: StoreCase) -> None:
    store = case.filled()
    whole, origin = store.decode(torch.arange(3))
    part, _ = store.decode(torch.tensor([2]))
    same = torch.allclose(_own(store, part), _own(store, whole)[origin == 2], atol=1e-6)
    _require(same, "items must decode independently", "rows differ")


def check_gradient_reaches_every_stored_value(case: StoreCase) -> None:
    store = case.filled()
    rows, _ = store.decode(torch.arange(3))
    weight = torch.rand(rows.shape, generator=Streams(1).torch("weights")) + 0.5
    rows.backward(weight)
    for name, tensor in store.params.items():
        grad = tensor.grad
        _require(grad is not None and bool(torch.isfinite(grad).all()), f"{name} must receive gradient", name)
        assert grad is not None
        # What lies between coupled rows may leave single values of its parameters out, such as a diagonal.
        reached = grad.flatten(1).any(1).all() if store.coupled and grad.ndim > 1 else grad.all()
        if store.coupled and name in store.shared:
            reached = grad.any()
        _require(bool(reached), f"{name} must receive gradient", name)


def check_constrain_is_idempotent(case: StoreCase) -> None:
    store = case.filled()
    with torch.no_grad():
        for tensor in store.params.values():
            tensor.mul_(50)
    store.constrain()
    once = {k: v.detach().clone() for k, v in store.params.items()}
    store.constrain()
    _require(all(torch.equal(once[k], v) for k, v in store.params.items()), "constrain twice must equal once", case)


def check_foreign_values_are_refused(case: StoreCase) -> None:
    try:
        case.make(torch.arange(3)).load({"something": torch.zeros(2)})
    except ArtifactError:
        return
    raise AssertionError(f"foreign tensors were accepted ({_SEE})")


def check_size_counts_stored_bytes(case: StoreCase) -> None:
    store = case.filled()
    real = sum(t.numel() * t.element_size() for t in store.tensors().values())
    _require(store.size_bytes == real, "size_bytes must be what is stored", (store.size_bytes, real))


def check_values_survive_loading(case: StoreCase) -> None:
    store, other = case.filled(), case.make(torch.arange(3))
    other.load(store.tensors())
    rows, again = store.decode(torch.arange(3))[0], other.decode(torch.arange(3))[0]
    _require(torch.equal(rows, again), "what was stored and loaded must decode alike", case)


def check_taken_items_stay_themselves(case: StoreCase) -> None:
    store = case.filled()
    rows, origin = store.decode(torch.arange(3))
    taken = store.take(torch.tensor([2, 0]))
    kept, source = taken.decode(torch.arange(2))
    for position, item in enumerate((2, 0)):
        same = torch.allclose(_own(store, kept)[source == position], _own(store, rows)[origin == item], atol=1e-6)
        _require(same, "an item must decode alike in the store it was taken into", item)
    together = store.decode(torch.tensor([2, 0]))[0]
    _require(torch.allclose(kept, together, atol=1e-6), "items taken together must decode as they did together", case)


def check_filling_is_reproducible(case: StoreCase) -> None:
    one, two = case.filled().tensors(), case.filled().tensors()
    _require(all(torch.equal(one[k], two[k]) for k in one), "same rows and streams, same stored values", case)


def check_budget_is_kept_and_used(case: StoreCase) -> None:
    kind, classes = type(case.make(torch.arange(3))), 3
    info, options = case.make(torch.arange(3)).info, case.make(torch.arange(3)).options
    for ipc in (8, 9, 20):  # room for what is shared
        items = kind.items_per_class(info, ipc, classes, **options)
        if kind.coupled:
            # What lies between rows grows with their square, so bytes cannot be shared out; rows are counted.
            _require(items == ipc, "the budget of coupled rows is their number", (ipc, items))
            continue
        for more, rule in ((0, "must fit the bytes of ipc plain items"), (1, "must leave no room for one more each")):
            store = kind(info, torch.arange(classes).repeat_interleave(items + more), **options)
            fits = store.size_bytes <= classes * ipc * 4 * math.prod(info.shape)
            _require(fits == (not more), f"items_per_class {rule}", (ipc, items, store.size_bytes))


# --- recipes ---------------------------------------------------------------------------------------------------


class RecipeCase:
    """A central recipe, run small on a task.

    Args:
        recipe: the declaration.
        case: domain and task.
        parts: settings that make it small. The last iterate is kept (``keep.every`` = 0), because nobody judges here.

    Raises:
        ConfigError: the recipe is for other modalities than the case's.
    """

    def __init__(self, recipe: Recipe, case: DomainCase, **parts: Any) -> None:
        if recipe.domains and case.domain.name not in recipe.domains:
            raise ConfigError(
                f"recipe {recipe.name!r} is for {', '.join(recipe.domains)}, and the case is {case!r}; "
                f"give it a case of its modality"
            )
        self.recipe, self.case = recipe, case
        small = {
            "steps": min(3, int(recipe.defaults.get("steps", 3))),
            "ipc": 2,
            "network": case.networks[0],
            "keep": {"every": 0},
        }
        self.given = {**small, **parts}
        self.parts = {**recipe.defaults, **self.given}

    def __repr__(self) -> str:
        return f"recipe {self.recipe.name}"

    def run(self, data: RealData | None = None, **parts: Any) -> SyntheticSet:
        given = {**self.given, **parts}
        presets = [p.values for p in self.recipe.presets if not p.datasets and p.fits("", given["ipc"])]
        settings = PartSettings(**dict(ChainMap(given, *map(dict, reversed(presets)), dict(self.recipe.defaults))))
        return distill(
            PlainGate(self.case.task.train if data is None else data), self.case.domain, settings, Streams(0)
        )


def check_recipe_declares_real_parts(case: RecipeCase) -> None:
    settings = PartSettings(**case.recipe.defaults)
    for kind, name in (
        ("objective", settings.objective),
        *(("objective", term.objective) for term in settings.terms),
        ("pool", settings.pool),
        ("decoder", settings.store),
        ("labels", settings.labels),
        ("protocol", settings.protocol),
    ):
        registry().get(kind, name, f"recipe {case.recipe.name}")
    _require(
        bool(case.recipe.citation and case.recipe.title), "a recipe needs a title and a citation", case.recipe.name
    )


def check_recipe_is_reproducible(case: RecipeCase) -> None:
    _require(case.run().content_hash == case.run().content_hash, "same seed, same set", case)


def check_recipe_works_with_one_class(case: RecipeCase) -> None:
    data = case.case.task.train
    syn = case.run(data.subset(data.class_index[1]))
    _require(syn.classes_held == (1,), "a client with one class must get that class only", syn.classes_held)


def check_recipe_works_with_ipc_1(case: RecipeCase) -> None:
    # Multi-formation takes several real rows per item, so this also covers "fewer rows than a batch".
    syn = case.run(ipc=1)
    counts = torch.bincount(syn.labels.classes, minlength=case.case.task.info.num_classes)
    _require(bool((counts == counts[0]).all() and counts[0]), "ipc 1 gives every class as many items", counts.tolist())
    size = syn.store.plain_items_per_class
    if syn.store.coupled:  # see `check_budget_is_kept_and_used`
        size = len(syn) / len(syn.classes_held)
    _require(size <= 1, "ipc 1 gives no more bytes than one plain item per class", size)


def check_recipe_leaves_the_data_alone(case: RecipeCase) -> None:
    data = case.case.task.train
    before = data.inputs.clone()
    case.run()
    _require(torch.equal(before, data.inputs), "the real data must not change", case)


def check_recipe_explains_too_large_budgets(case: RecipeCase) -> None:
    data = case.case.task.train
    few = data.subset(torch.cat([rows[:3] for rows in data.class_index]))
    try:
        case.run(few, ipc=50, top_up=False)
    except DdfedError as error:
        _require("ipc" in str(error), "the message must name the setting", error)
    else:
        _require(case.parts.get("init") == "noise", "an ipc larger than the class must be refused", case)


_DOMAIN: tuple[Check, ...] = (
    check_rows_have_the_declared_shape,
    check_classes_are_counted_right,
    check_loading_twice_gives_the_same_data,
    check_train_and_test_share_no_row,
    check_space_decodes_what_it_encodes,
    check_head_of_embed_is_forward,
    check_embed_has_one_width,
    check_same_seed_same_network,
    check_reset_equals_building_anew,
    check_rows_are_judged_independently,
    check_gradient_reaches_every_value,
    check_networks_can_be_differentiated_twice,
    check_augmentation_is_shared_within_a_group,
    check_augmentation_takes_no_global_randomness,
    check_augmentation_accepts_no_rows,
    check_default_network_learns,
    check_unknown_names_suggest_the_near_one,
    check_distilled_set_survives_save_and_load,
    check_distilling_is_reproducible,
    check_render_and_export_write_files,
    check_bytes_are_those_of_the_file,
    check_exports_come_back,
    check_labels_of_other_splits_do_not_leak,
    check_shuffled_labels_teach_nothing,
    check_full_data_reach_the_reference,
)
_STORE: tuple[Check, ...] = (
    check_decoded_rows_fit_the_task,
    check_decoding_part_equals_part_of_decoding,
    check_gradient_reaches_every_stored_value,
    check_constrain_is_idempotent,
    check_foreign_values_are_refused,
    check_size_counts_stored_bytes,
    check_values_survive_loading,
    check_taken_items_stay_themselves,
    check_filling_is_reproducible,
    check_budget_is_kept_and_used,
)
_RECIPE: tuple[Check, ...] = (
    check_recipe_declares_real_parts,
    check_recipe_is_reproducible,
    check_recipe_works_with_one_class,
    check_recipe_works_with_ipc_1,
    check_recipe_leaves_the_data_alone,
    check_recipe_explains_too_large_budgets,
)


def checks_for(subject: Any) -> tuple[Check, ...]:
    """The checks that apply to a case."""
    for kind, checks in ((DomainCase, _DOMAIN), (StoreCase, _STORE), (RecipeCase, _RECIPE)):
        if isinstance(subject, kind):
            return checks
    raise ConfigError(f"no checks for {type(subject).__name__}; use DomainCase, StoreCase or RecipeCase")


def parametrize_with_checks(subjects: Iterable[Any], skip: dict[str, str] | None = None) -> Any:
    """A pytest decorator: one test per subject and check, named so that a failure reads as a sentence.

    Args:
        subjects: cases.
        skip: check name -> reason, shown in the output.
    """
    import pytest

    found = []
    for subject in subjects:
        for check in checks_for(subject):
            name = check.func.__name__ if isinstance(check, partial) else check.__name__
            reason = (skip or {}).get(name)
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            found.append(pytest.param(subject, check, id=f"{subject!r}-{name}", marks=marks))
    return pytest.mark.parametrize(("subject", "check"), found)
