"""DYNAFED: FedAvg on the wire, one synthesis from the path of the models, refining after it."""

from __future__ import annotations

import pytest
import torch
from playing import client, method_of, play, server, server_context, settings

from ddfed.errors import ConfigError
from ddfed.federation import Release
from ddfed.pool.buffer import snapshot_of

SMALL = {
    "begins": 3,
    "ipc": 2,
    "steps": 4,
    "student_steps": 3,
    "span": 2,
    "average": [1, 2],
    "refine_epochs": 3,
    "refine_lr": 0.01,
}


def small():
    return settings("dynafed", options=SMALL, federation={"rounds": 4})


def test_clients_do_and_send_what_those_of_fedavg_do():
    mine, _ = client(small(), 1)
    theirs, _ = client(settings("fedavg"), 1)
    assert set(mine.payload) == {"weights"}
    assert all(torch.equal(mine.weights[k], theirs.weights[k]) for k in theirs.weights)


def test_clients_count_alike_whatever_they_hold():
    s = small()
    state = method_of(s).begin(server_context(s))
    a = {k: torch.full_like(v, 1.0) for k, v in state.weights.items()}
    b = {k: torch.full_like(v, 5.0) for k, v in state.weights.items()}
    merged = server(s, state, [Release(0, 1, {"weights": a}, examples=30), Release(1, 1, {"weights": b}, examples=10)])
    assert all(torch.allclose(v, torch.full_like(v, 3.0)) for v in merged.weights.values())


def test_the_path_is_kept_until_the_set_is_made_from_it_once():
    s = small()
    context = server_context(s)
    first, _ = play(s, rounds=1)
    path = first.memory["trajectory"]
    assert torch.equal(path[0], snapshot_of(context.network()))
    assert torch.equal(path[1], snapshot_of(context.network(first.weights)))
    assert "pseudo" not in first.memory
    second, _ = play(s, rounds=2)
    third, _ = play(s, rounds=3)
    assert second.memory["trajectory"] == []
    assert second.memory["pseudo"]["x"].shape == (6, 2, 4, 4)
    torch.testing.assert_close(second.memory["pseudo"]["soft"].sum(1), torch.ones(6))
    assert torch.equal(second.memory["pseudo"]["x"], third.memory["pseudo"]["x"])


def test_until_the_set_is_made_it_is_fedavg_on_equal_shares():
    mine, _ = play(small(), rounds=1)
    theirs, _ = play(settings("fedavg"), rounds=1)
    assert all(torch.allclose(mine.weights[k], theirs.weights[k], atol=1e-6) for k in theirs.weights)


def test_refining_lowers_the_loss_on_the_set():
    from ddfed_federated.parts.dynamics import refined

    s = small()
    state, _ = play(s, rounds=2)
    context, pseudo = server_context(s), state.memory["pseudo"]

    def loss(net: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(net(pseudo["x"]), pseudo["soft"]))

    assert loss(refined(context.network(), pseudo, context, 9)) < loss(context.network())


def test_passes_before_refining_move_the_statistics_of_norms():
    from ddfed_federated.parts.dynamics import refined

    s = settings(
        "dynafed", options={**SMALL, "refine_lr": 1e-12, "refine_epochs": 1}, distill={"network": "norms"},
        federation={"rounds": 4},
    )  # fmt: skip
    context = server_context(s)
    pseudo = {"x": 3 + torch.randn(6, 2, 4, 4), "y": torch.arange(6) % 3, "soft": torch.full((6, 3), 1 / 3)}
    net = refined(context.network(), pseudo, context, 1)
    assert int(net.norm1.num_batches_tracked) == 4
    assert not torch.allclose(net.norm1.running_mean, torch.zeros(4))


@pytest.mark.parametrize(
    ("rounds", "options", "said"),
    [(1, SMALL, "it would be fedavg"), (9, {**SMALL, "span": 3}, "above options.span")],
)
def test_what_could_never_make_a_set_is_refused_before_the_first_round(rounds, options, said):
    s = settings("dynafed", options=options, federation={"rounds": rounds})
    with pytest.raises(ConfigError, match=said):
        method_of(s).check(server_context(s))


def test_interrupted_before_or_after_the_synthesis_it_goes_on_to_the_same_numbers(tmp_path):
    from ddfed.config import to_toml
    from ddfed.runs import RunFolder
    from ddfed_federated.rounds import Progressing
    from ddfed_federated.simulate import simulate

    s = settings("dynafed", options=SMALL, federation={"rounds": 4, "clients": 3, "partition": "iid"})

    class Stop(Exception):
        pass

    def rows(summary) -> list[dict]:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in summary["methods"]["dynafed"]["rows"]]

    with RunFolder.create(tmp_path, "whole", to_toml(s)) as folder:
        whole = rows(simulate(s, folder))
    for last in (1, 3):

        def stop(row, last=last):
            if row.round == last + 1:
                raise Stop

        with RunFolder.create(tmp_path, f"stopped {last}", to_toml(s)) as folder:
            with pytest.raises(Stop):
                simulate(s, folder, Progressing(finished=stop))
            assert rows(simulate(s, folder, resume=True)) == whole
