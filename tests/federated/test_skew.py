"""Feature skew: each view against a direct computation, what it hangs on, and whole federations under it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from playing import small_run

from ddfed.data import RealData
from ddfed.errors import ConfigError, DataError, UnknownNameError
from ddfed.registry import registry
from ddfed.seeds import Streams
from ddfed.testing import TwinDomain, twin_task
from ddfed_federated.simulate import check_simulate
from ddfed_federated.skew import check_skew, noise, pooled, seen_by
from ddfed_federated.worker import load_partition, load_share, load_task
from ddfed_image.domain import ImageDomain
from ddfed_image.skew import blur, channel_gain, contrast, rotation

IMAGE_VIEWS = ("rotation", "channel-gain", "contrast", "blur")
STREAMS = Streams(3)


def images(rows=6, shape=(3, 12, 12)):
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0))


def settings(**sections):
    tiny = {"distill": {"ipc": 1, "steps": 2}, "server": {"epochs": 3}, "federation": {"clients": 3, "rounds": 1}}
    return small_run(tiny, **sections)


@pytest.mark.parametrize("name", ["noise", *IMAGE_VIEWS])
def test_a_row_is_seen_alike_whoever_else_is_there(name):
    view, rows = registry().load("skew", name), images()
    whole = view(rows, 1, 4, STREAMS)
    assert whole.shape == rows.shape
    order = torch.tensor([4, 0, 2])
    torch.testing.assert_close(view(rows[order], 1, 4, STREAMS), whole[order], rtol=0, atol=1e-6)
    assert not torch.allclose(view(rows, 3, 4, STREAMS.child(3)), whole, atol=1e-3)


def test_noise_grows_as_the_paper_says():
    rows = torch.zeros(40, 1, 20, 20) + torch.arange(40).view(-1, 1, 1, 1) / 100
    for client in range(4):
        made = noise(rows, client, 4, Streams(client), sigma=0.4) - rows
        # Four standard errors of a deviation of 16,000 values.
        wanted = 0.4 * math.sqrt((client + 1) / 4)
        assert float(made.std()) == pytest.approx(wanted, rel=4 / math.sqrt(2 * made.numel()))
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(noise(rows, 0, 4, Streams(7)), noise(rows, 0, 4, Streams(8)))


def test_images_are_turned_from_one_side_to_the_other():
    rows = images(2, (1, 9, 9))
    turned = rotation(rows, 0, 3, STREAMS, degrees=90)
    torch.testing.assert_close(turned, rotation(rows, 2, 3, STREAMS, degrees=90).flip(-1, -2))
    quarter = [torch.rot90(rows, k, (-2, -1)) for k in (1, -1)]
    assert any(torch.allclose(turned, q, atol=1e-5) for q in quarter)
    torch.testing.assert_close(rotation(rows, 1, 3, STREAMS, degrees=90), rows)
    torch.testing.assert_close(rotation(rows, 0, 1, STREAMS, degrees=90), rows)


def test_gains_are_the_clients_and_one_per_channel():
    rows = images() * 0.4  # nothing is clipped at a factor of 2
    made = channel_gain(rows, 0, 4, STREAMS, factor=2.0) / rows
    gains = made.mean((0, 2, 3))
    torch.testing.assert_close(made, gains.view(1, 3, 1, 1).expand_as(made))
    assert bool(((gains >= 0.5) & (gains <= 2)).all()) and len(set(gains.tolist())) == 3
    assert float(channel_gain(torch.ones(1, 3, 2, 2), 0, 4, STREAMS, factor=9.0).max()) <= 1


def test_contrast_goes_from_flat_to_hard():
    rows = 0.5 + (images() - 0.5) * 0.2
    for client, gain in ((0, 0.5), (1, 1.0), (2, 2.0)):
        made = contrast(rows, client, 3, STREAMS, factor=2.0)
        for row, mine in zip(rows, made):
            torch.testing.assert_close(mine, row.mean() + gain * (row - row.mean()))


def test_blur_is_the_gaussian_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    rows = images(2)
    for client in range(3):
        deviation = 1.5 * (client + 1) / 3
        made = blur(rows, client, 3, STREAMS, sigma=1.5)
        for row, mine in zip(rows, made):
            wanted = np.stack(
                [
                    ndimage.gaussian_filter(c, deviation, mode="nearest", radius=math.ceil(3 * deviation))
                    for c in row.double().numpy()
                ]
            )
            np.testing.assert_allclose(mine.numpy(), wanted, atol=1e-5)
    assert torch.equal(blur(rows, 0, 3, STREAMS, sigma=0.0), rows)


def test_a_view_is_taken_of_natural_values():
    data = twin_task(per_class=5).train
    seen = data.seen(lambda natural: 1 - natural)
    assert seen.scale == 1.0 and seen.labels is data.labels
    torch.testing.assert_close(seen.inputs, 1 - data.inputs / 255)
    torch.testing.assert_close(seen.all().inputs, data.info.space.encode(1 - data.inputs / 255))
    assert len(data.subset([]).seen(lambda natural: 1 / 0)) == 0
    with pytest.raises(DataError, match="must keep the shape"):
        data.seen(lambda natural: natural[:, :1])
    with pytest.raises(DataError, match="finite"):
        data.seen(lambda natural: natural / 0)
    words = RealData(torch.zeros(15, 2, 4, 4, dtype=torch.int64), data.labels, data.info)
    with pytest.raises(DataError, match="numbers of things"):
        words.seen(lambda natural: natural)


def test_shares_are_seen_by_their_holders_and_only_so():
    plain, skewed = settings(), settings(federation={"skew": "contrast", "skew_options": {"factor": 3}})
    assert load_partition(plain).hash == load_partition(skewed).hash
    task, shares = load_task(plain)[1], load_partition(plain).shares
    for client, share in enumerate(shares):
        rows = task.train.within(share)
        assert torch.equal(load_share(plain, client).inputs, rows.inputs)
        wanted = contrast(rows.inputs * rows.scale, client, 3, STREAMS, factor=3)
        torch.testing.assert_close(load_share(skewed, client).inputs, wanted)
    with pytest.raises(ConfigError, match="partition id 3 is outside 0 to 2"):
        load_share(plain, 3)
    together = pooled([load_share(skewed, k) for k in range(3)])
    assert together.class_counts.tolist() == task.train.class_counts.tolist()
    assert len(together.inputs) == len(task.train)


def test_noise_hangs_on_seed_client_and_row():
    def share(client, seed):
        s = settings(run={"seed": seed}, federation={"skew": "noise"})
        return seen_by(client, load_task(s)[1].test.subset(range(5)), s).inputs

    assert torch.equal(share(0, 0), share(0, 0))
    assert not torch.equal(share(0, 0), share(0, 1))
    first, last = (share(client, 0) - load_task(settings())[1].test.subset(range(5)).inputs / 16 for client in (0, 2))
    assert abs(float((first * last).mean())) < 0.2 * float(first.std() * last.std())


def test_a_federation_under_skew_is_another_one(run):
    plain = run(settings(references=["local", "central"]), "plain")[0]
    options = {"skew": "rotation", "skew_options": {"degrees": 90}}
    skewed = run(settings(references=["local", "central"], federation=options), "skewed")[0]
    again = run(settings(references=["local", "central"], federation=options), "again")[0]
    assert plain["partition"]["skew"] == {}
    assert skewed["partition"]["skew"] == {"name": "rotation", "options": {"degrees": 90}}
    assert plain["partition"]["hash"] == skewed["partition"]["hash"]
    assert len({s["artifact"] for s in (plain, skewed)}) == 2
    assert skewed["artifact"] == again["artifact"]
    for name in ("local", "central"):
        found = [s["references"][name]["accuracies"] for s in (plain, skewed, again)]
        assert found[1] == found[2] != found[0]


def test_a_pool_of_workers_sees_the_same(run):
    options = {"skew": "noise", "skew_options": {"sigma": 0.5}}
    one, two = (run(settings(federation={**options, "workers": n}), f"w{n}")[0] for n in (0, 2))
    assert one["artifact"] == two["artifact"]


@pytest.mark.parametrize(
    ("federation", "message"),
    [
        ({"skew": "noise", "skew_options": {"sigm": 1}}, "skew 'noise' has no option 'sigm'. Did you mean 'sigma'"),
        ({"skew": "noise", "skew_options": {"sigma": -1}}, "at least 0"),
        ({"skew": "rotation", "skew_options": {"degrees": 200}}, "from 0 to 180"),
        ({"skew": "blur", "skew_options": {"sigma": 11}}, "from 0 to 10"),
        ({"skew": "contrast", "skew_options": {"factor": 0.5}}, "at least 1"),
        ({"skew": "channel-gain", "skew_options": {"factor": 0.5}}, "at least 1"),
        ({"skew_options": {"sigma": 1}}, "without a skew"),
    ],
)
def test_wrong_skews_say_what_is_possible(federation, message):
    with pytest.raises(ConfigError, match=message):
        check_simulate(settings(federation=federation))


def test_an_unknown_skew_names_the_near_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'rotation'"):
        settings(federation={"skew": "rotatoin"})


def test_a_skew_of_another_domain_is_refused():
    with pytest.raises(ConfigError, match="is for domain 'image'.* Possible here: 'none', 'noise'"):
        check_skew(settings(federation={"skew": "blur"}), TwinDomain(), twin_task().info)
    check_skew(settings(federation={"skew": "noise"}), TwinDomain(), twin_task().info)


def test_rows_that_are_seen_together_have_no_skew(monkeypatch):
    from ddfed.domain import Capabilities

    monkeypatch.setattr(ImageDomain, "capabilities", Capabilities(independent_rows=False))
    with pytest.raises(ConfigError, match="seen together"):
        check_simulate(settings(federation={"skew": "noise"}))


def test_a_personal_model_is_judged_as_its_client_sees(monkeypatch):
    """Only then is the test split seen through the client's view; the global model's is left as it is."""
    from types import SimpleNamespace

    from ddfed.federation import Broadcast, Release
    from ddfed_federated import worker

    s = settings(federation={"skew": "contrast", "skew_options": {"factor": 3}})
    seen = {}
    load_partition(s)  # which is kept; what is put in place of the registry knows methods alone

    def client(state, gate, broadcast, context):
        seen[personal] = context.test
        return Release(context.client, 1, "empty"), {}

    for personal in (False, True):
        method = SimpleNamespace(
            name="own", control=False, personal=personal, phase=lambda _: SimpleNamespace(client=client)
        )
        monkeypatch.setattr(worker, "registry", lambda method=method: SimpleNamespace(load=lambda *_: method))
        monkeypatch.setattr(worker, "options_of", lambda _: None)
        worker.answer(s.model_dump_json(), 2, Broadcast(1), {})
    test = load_task(s)[1].test
    assert seen[False] is test
    torch.testing.assert_close(seen[True].inputs, contrast(test.inputs * test.scale, 2, 3, STREAMS, factor=3))
