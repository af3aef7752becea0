"""DOSFL: lessons for a shared start, masked while they are made, and replayed in turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from playing import DOMAIN, TASK, client, method_of, play, server, server_context, settings, shares

from ddfed.distill import distill
from ddfed.errors import ConfigError, ReleaseError
from ddfed.evaluate import accuracy
from ddfed.federation import Release, check_release
from ddfed.gate import PlainGate
from ddfed.seeds import Streams
from ddfed_federated.methods.dosfl import _teaching, interleaved


def dosfl(**sections):
    options = {"batches": 2, "passes": 2, "lr": 0.05, **sections.pop("options", {})}
    distill_ = {"ipc": 2, "steps": 3, "lr": 0.05, **sections.pop("distill", {})}
    return settings("dosfl", options=options, distill=distill_, **sections)


def begun(s):
    context = server_context(s)
    state = method_of(s).begin(context)
    return state, method_of(s).phases[0].broadcast(1, state, context)


def lessons(who: int, items: int, s) -> Release:
    generator = Streams(who).torch("items")
    x, soft = torch.randn(items, 2, 4, 4, generator=generator), torch.rand(items, 3, generator=generator).softmax(1)
    tables = {"lrs": torch.rand(4, generator=generator), "checksum": begun(s)[0].memory["checksum"]}
    y = torch.zeros(items, dtype=torch.int64)
    return Release(who, 1, {"set": {"x": x, "y": y, "soft": soft}, "statistics": tables}, items, (items, 0, 0))


def test_the_server_goes_through_the_clients_batch_by_batch():
    """Against a loop over passes, batches and clients with torch's own SGD."""
    s = dosfl()
    state, _ = begun(s)
    releases = [lessons(0, 6, s), lessons(1, 4, s)]
    merged = server(s, state, releases)
    net = server_context(s).network(state.weights)
    for turn in range(4):
        for release in releases:
            rows = [i for i in range(release.items) if i % 2 == turn % 2]
            loss = F.cross_entropy(net(release.set["x"][rows]), release.set["soft"][rows])
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads):
                    p -= float(release.statistics["lrs"][turn]) * g
    for name, value in net.state_dict().items():
        torch.testing.assert_close(merged.weights[name], value)


def test_every_item_has_its_turn_once_a_pass():
    s = dosfl()
    lrs, rows = interleaved([lessons(0, 6, s), lessons(1, 4, s)], 2)
    assert len(lrs) == 8
    assert sorted(torch.cat([rows(t) for t in range(4)]).tolist()) == list(range(10))


def test_masked_blocks_are_noise_and_do_not_move():
    s = dosfl(options={"mask": 0.5})
    parts = _teaching(s, server_context(s).options).model_copy(
        update={"steps": 1, "optimizer": "sgd", "lr": 1.0, "momentum": 0.0}
    )
    start = torch.randn(6, 2, 4, 4)
    center = begun(s)[0].weights
    made = distill(PlainGate(TASK.train), DOMAIN, parts, Streams(0), center=center, start={"x": start})
    moved = (made.decoded()[0] != start).flatten(1).any(1).tolist()
    assert moved in ([True, False] * 3, [False, True] * 3)
    # What a masked block holds has no say in where the others go.
    masked = 1 if moved[0] else 0
    other = start.clone()
    other[masked::2] += 1
    again = distill(PlainGate(TASK.train), DOMAIN, parts, Streams(0), center=center, start={"x": other})
    assert torch.equal(again.decoded()[0][1 - masked :: 2], made.decoded()[0][1 - masked :: 2])


def test_a_start_drawn_by_another_library_is_refused():
    s = dosfl()
    state, broadcast = begun(s)
    release, _ = client(s, 1, TASK.train.subset(shares(3)[0]), broadcast=broadcast)
    expected = method_of(s).phases[0].client.expects(0, state, server_context(s))
    check_release(release, TASK.info, broadcast, expected)
    tables = {**release.statistics, "checksum": release.statistics["checksum"] + 1}
    with pytest.raises(ReleaseError, match="one version of torch"):
        other = replace(release, payload={**release.payload, "statistics": tables})
        check_release(other, TASK.info, broadcast, expected)


def test_the_bytes_are_those_of_items_labels_and_step_sizes():
    s = dosfl()
    state, broadcast = begun(s)
    release, _ = client(s, 1, TASK.train.subset(shares(3)[0]), broadcast=broadcast)
    assert release.size_bytes == 6 * (4 * 32 + 4 * 3 + 8) + 4 * 4 + 8
    assert broadcast.weights == {} and set(broadcast.arrays) == {"seed"}


def test_items_that_do_not_fill_the_batches_are_refused():
    s = dosfl(distill={"ipc": 3})
    with pytest.raises(ConfigError, match="not a multiple"):
        method_of(s).phases[0].client.check(server_context(s))


def test_lessons_teach_the_shared_start():
    s = dosfl(options={"mask": 0.0, "reset": 0.0, "passes": 4}, distill={"steps": 60}, federation={"clients": 2})
    before = accuracy(server_context(s).network(begun(s)[0].weights), TASK.test)
    state, heard = play(s, shares(2))
    assert len(heard) == 1
    assert accuracy(server_context(s).network(state.weights), TASK.test) > max(0.8, before)
