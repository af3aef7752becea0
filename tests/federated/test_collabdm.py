"""CollabDM: answers of clients pool to those of everybody's rows, and the server's engine cannot tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from playing import DOMAIN, TASK, client, client_context, method_of, play, server_context, settings, shares

from ddfed.distill import distill
from ddfed.errors import GateError, ReleaseError
from ddfed.federation import check_release
from ddfed.gate import PlainGate, Query
from ddfed.seeds import Streams
from ddfed_federated.methods.collabdm import _asking, _shared, pooled_answers, starting_items
from ddfed_federated.parts.answers import Replayed, checksums


def collab(**sections):
    options = {"networks": 4, "rows": None, "lr": 1.0, **sections.pop("options", {})}
    distill_ = {"augment": "shift", "steps": 3, **sections.pop("distill", {})}
    federation = {"clients": 3, **sections.pop("federation", {})}
    server = {"augment": "none", "epochs": 5}
    return settings("collabdm", options=options, distill=distill_, federation=federation, server=server, **sections)


def answer(s, rows, who=0):
    """One client's release to the broadcast of the only round."""
    context = server_context(s)
    state = method_of(s).begin(context)
    broadcast = method_of(s).phases[0].broadcast(1, state, context)
    release, _ = client(s, 1, TASK.train.subset(rows), who=who, broadcast=broadcast)
    check_release(release, TASK.info, broadcast, method_of(s).phases[0].client.expects(who, state, context))
    return release


def naive_mean(s, number: int, rows: torch.Tensor) -> torch.Tensor:
    """Class means of ``rows`` under shared network ``number``, (classes, width); written out."""
    from ddfed.seeds import isolated

    state = method_of(s).begin(server_context(s))
    shared = _shared(state.memory["seed"])
    with isolated(shared.seed("network", number)):
        net = DOMAIN.network("small", TASK.info)
    shift = DOMAIN.augmentation("shift", TASK.info)
    draw = shift.draw(3, shared.torch("siamese", number))
    batch = TASK.train.subset(rows).all()
    with torch.no_grad():
        features = net.embed(shift(batch.inputs, draw, batch.classes))
    return torch.stack([features[batch.classes == c].mean(0) for c in range(3)])


def uneven() -> list[torch.Tensor]:
    """One client with one class, one with two and few rows of one, one with the rest."""
    of = TASK.train.class_index
    return [of[0][:25], torch.cat([of[0][25:], of[1][:5]]), torch.cat([of[1][5:], of[2]])]


def test_the_count_weighted_mean_of_client_means_is_the_mean_of_all_rows():
    s = collab()
    pooled = pooled_answers([answer(s, rows, who) for who, rows in enumerate(uneven())])
    everybody = torch.arange(len(TASK.train))
    for number in range(4):
        torch.testing.assert_close(pooled[number, :, 1:], naive_mean(s, number, everybody), rtol=1e-5, atol=1e-6)
    assert pooled[0, :, 0].tolist() == [40, 40, 40]


def test_the_papers_weighting_takes_every_holder_alike():
    s = collab()
    releases = [answer(s, rows, who) for who, rows in enumerate(uneven())]
    alike = pooled_answers(releases, "uniform")[2, 0, 1:]
    of = TASK.train.class_index
    parts = [torch.cat([rows, of[1], of[2]]) for rows in (of[0][:25], of[0][25:])]
    mean = torch.stack([naive_mean(s, 2, rows)[0] for rows in parts]).mean(0)
    torch.testing.assert_close(alike, mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alike, pooled_answers(releases)[2, 0, 1:])


def test_one_client_with_everything_is_central_distillation_under_the_same_seeds():
    s = collab(federation={"clients": 1})
    state, heard = play(s, [torch.arange(len(TASK.train))])
    (made,), (release,) = state.memory["sets"][0], heard[0]
    start = starting_items([release], (0, 1, 2), s.distill.ipc, Streams(0).torch("unused"))
    shared = _shared(method_of(s).begin(server_context(s)).memory["seed"])
    parts = _asking(s, client_context(s).options)
    central = distill(PlainGate(TASK.train), DOMAIN, parts, shared, start={"x": start})
    torch.testing.assert_close(made["x"], central.decoded()[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made["x"], start)


def test_splitting_the_rows_among_clients_changes_the_start_alone():
    """The questions are the same and so are the pooled answers, however the rows lie."""
    s = collab()
    one = pooled_answers([answer(s, torch.arange(len(TASK.train)))])
    three = pooled_answers([answer(s, rows, who) for who, rows in enumerate(shares(3))])
    torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-6)


def test_a_client_whose_library_draws_other_networks_is_refused():
    s = collab()
    context = server_context(s)
    state = method_of(s).begin(context)
    broadcast = method_of(s).phases[0].broadcast(1, state, context)
    release = answer(s, shares(3)[0])
    tables = {**release.statistics, "checksums": release.statistics["checksums"].flip(0)}
    other = replace(release, payload={**release.payload, "statistics": tables})
    with pytest.raises(ReleaseError, match="one version of torch"):
        check_release(other, TASK.info, broadcast, method_of(s).phases[0].client.expects(0, state, context))


def test_checksums_tell_networks_apart():
    s = collab()
    sums = checksums(DOMAIN, TASK.info, _asking(s, client_context(s).options), Streams(1))
    assert len(set(sums.tolist())) == 4
    assert not torch.equal(sums, checksums(DOMAIN, TASK.info, _asking(s, client_context(s).options), Streams(2)))


def test_what_leaves_a_client_and_its_bytes():
    s = collab(options={"dtype": "float16"})
    release = answer(s, torch.cat([TASK.train.class_index[c] for c in (0, 2)]))
    assert release.set["y"].tolist() == [0, 2]  # ipc 2 of the server among 3 clients: one item a class each
    assert {k: tuple(v.shape) for k, v in release.statistics.items()} == {
        "means": (4, 3, 16), "counts": (3,), "checksums": (4,),
    }  # fmt: skip
    assert release.size_bytes == 2 * 32 * 4 + 2 * 8 + 4 * 3 * 16 * 2 + 3 * 4 + 4 * 8
    assert release.statistics["counts"].tolist() == [40, 0, 40]


def test_short_classes_are_repeated_apart():
    s = collab(distill={"ipc": 5})
    releases = [answer(s, rows, who) for who, rows in enumerate(uneven())]
    items = starting_items(releases, (0, 1, 2), 5, Streams(0).torch("noise"))
    assert items.shape == (15, 2, 4, 4)
    class_two = items[10:]  # one holder with 2 of the 5
    assert torch.equal(class_two[0], releases[2].set["x"][releases[2].set["y"] == 2][0])
    assert not torch.equal(class_two[0], class_two[2])
    assert float((class_two[0] - class_two[2]).abs().max()) < 1


def test_answers_given_beforehand_are_sums_and_no_more_than_were_asked():
    gate = Replayed(TASK.info, torch.ones(1, 3, 5))
    query, stream = Query("class means", (0, 2)), Streams(0).torch("x")
    assert gate.sums(query, lambda batch: batch.inputs.flatten(1), stream).means.shape == (2, 4)
    with pytest.raises(GateError, match="1 answers were given"):
        gate.sums(query, lambda batch: batch.inputs.flatten(1), stream)
    with pytest.raises(GateError, match="asks for something else"):
        gate.raw("initialisation")


def test_a_federation_learns_from_the_answers():
    from ddfed.evaluate import accuracy

    s = collab(options={"networks": 20}, distill={"ipc": 3}, federation={"clients": 3})
    state, _ = play(s, uneven())
    assert accuracy(server_context(s).network(state.weights), TASK.test) > 0.6
    assert state.memory["sets"][0][0]["y"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
