"""The wire format: exact round trips, byte counts, and refusals that never are KeyErrors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from ddfed.errors import DdfedError, ReleaseError, UnknownNameError
from ddfed.federation import Broadcast, Release
from ddfed.ledger import Ledger, PrivacyEvent
from ddfed_federated.flower import wire


def travel(content: RecordDict) -> RecordDict:
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


WEIGHTS = {
    "z.weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    "a.steps": torch.tensor(7),
    "m.empty": torch.zeros(0, 5),
}
ITEMS = {"x": torch.randn(5, 3, 4, 4), "y": torch.tensor([0, 9, 1, 1, 4])}
A_SET = Release(3, 2, {"set": ITEMS}, 40, (4, 0, 36), {"loss": 0.5}, phase="condense")


def test_a_broadcast_comes_back_exactly_and_in_order():
    sent = Broadcast(5, WEIGHTS, {"means": torch.randn(2, 3, dtype=torch.float64)}, {"rate": 0.1, "steps": 3})
    order = wire.Order(4, "feddm", '{"ipc": 10}', "uint8", 2, limit_s=1.5)
    broadcast, got = wire.decode_broadcast(travel(wire.encode_broadcast(sent, order)))
    assert got == order
    assert (broadcast.round, broadcast.scalars) == (5, {"rate": 0.1, "steps": 3.0})
    assert list(broadcast.weights) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(broadcast.weights[name], tensor)
        assert broadcast.weights[name].dtype == tensor.dtype
        assert broadcast.weights[name].shape == tensor.shape
    assert broadcast.arrays["means"].dtype == torch.float64


def test_an_empty_broadcast_comes_back():
    broadcast, order = wire.decode_broadcast(travel(wire.encode_broadcast(Broadcast(1), wire.Order(0))))
    assert broadcast == Broadcast(1)
    assert order == wire.Order(0)


def test_a_set_comes_back_exactly_in_float32():
    back = wire.decode_release(travel(wire.encode_release(A_SET)))
    assert torch.equal(back.set["x"], ITEMS["x"])
    assert torch.equal(back.set["y"], ITEMS["y"])
    assert back.set["y"].dtype == torch.int64
    assert (back.client, back.round, back.phase, set(back.payload), back.examples) == (3, 2, "condense", {"set"}, 40)
    assert (back.class_counts, dict(back.metrics)) == ((4, 0, 36), {"loss": 0.5})


@pytest.mark.parametrize("codec", ["float32", "float16", "uint8"])
def test_an_empty_set_comes_back(codec):
    empty = Release(0, 1, {"set": {"x": torch.zeros(0, 3, 4, 4), "y": torch.zeros(0, dtype=torch.int64)}})
    back = wire.decode_release(travel(wire.encode_release(empty, codec)))
    assert back.set["x"].shape == (0, 3, 4, 4)
    assert back.set["y"].shape == (0,)
    assert back.class_counts == ()


def test_weights_and_empty_releases_come_back():
    back = wire.decode_release(travel(wire.encode_release(Release(1, 1, {"weights": WEIGHTS}, 9), "uint8")))
    assert all(torch.equal(back.weights[k], v) for k, v in WEIGHTS.items())
    assert list(back.weights) == list(WEIGHTS)
    nothing = wire.decode_release(travel(wire.encode_release(Release(1, 1))))
    assert nothing.payload == {}


def test_a_release_may_hold_several_things_at_once():
    tables = {"means": torch.randn(3, 4), "radius": torch.tensor(1.5)}
    soft = torch.softmax(torch.randn(5, 10), 1)
    sent = Release(1, 1, {"set": {**ITEMS, "soft": soft}, "weights": WEIGHTS, "statistics": tables}, 9)
    content = wire.encode_release(sent)
    back = wire.decode_release(travel(content))
    assert set(back.payload) == {"set", "weights", "statistics"}
    assert torch.allclose(back.set["soft"], soft, atol=1e-3), "targets travel in half precision"
    assert all(torch.equal(back.statistics[k], v) for k, v in tables.items())
    spent = wire.payload_bytes(content)
    assert all(spent[what] > 0 for what in wire.SPENT)
    assert sum(spent.values()) == len(recorddict_to_proto(content).SerializeToString())


def test_what_is_sent_down_is_booked_by_its_name():
    arrays = {"peers/x": torch.zeros(100), "peers/y": torch.zeros(10), "logits": torch.zeros(50)}
    down = wire.payload_bytes(wire.encode_broadcast(Broadcast(1, {}, arrays), wire.Order(0)))
    assert 400 < down["items"] < 600
    assert 40 < down["labels"] < 240
    assert 200 < down["statistics"] < 400
    assert down["weights"] == 0


def test_layouts_of_memory_do_not_matter():
    x = torch.randn(3, 4, 5, 2).permute(3, 1, 2, 0)
    fortran = Array(np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert torch.equal(wire.unpack(wire.pack({"x": x}))["x"], x)
    assert wire.unpack(ArrayRecord({"f": fortran}))["f"].tolist() == [[0, 1, 2], [3, 4, 5]]
    big_endian = Array(np.arange(3, dtype=">f4"))
    assert wire.unpack(ArrayRecord({"b": big_endian}))["b"].tolist() == [0, 1, 2]


def test_bytes_add_up_and_are_what_is_serialised():
    content = wire.encode_release(A_SET, "uint8")
    spent = wire.payload_bytes(content)
    assert sum(spent.values()) == len(recorddict_to_proto(content).SerializeToString())
    pixels = ITEMS["x"].numel()
    assert spent["weights"] == 0
    # Three arrays: pixels and the two ranges, each with a header of at most 200 bytes.
    assert pixels + 24 < spent["items"] < pixels + 24 + 600
    assert 10 < spent["labels"] < 10 + 200
    down = wire.payload_bytes(wire.encode_broadcast(Broadcast(1, {"w": torch.zeros(1000)}), wire.Order(0)))
    assert 4000 < down["weights"] < 4200
    assert 0 < down["control"] < 500


@pytest.mark.parametrize(
    ("release", "message"),
    [
        (Release(0, 1, {"sets": {}}), "possible are 'set'"),
        (Release(0, 1, {"set": {"x": torch.zeros(1, 1)}}), "a set has the arrays"),
        (Release(0, 1, {"set": {"x": torch.zeros(1, 1), "y": torch.tensor([0.5])}}), "holds classes"),
        (Release(0, 1, {"set": {"x": torch.zeros(1, 1), "y": torch.tensor([40000])}}), "int16"),
    ],
)
def test_releases_that_cannot_travel_are_refused(release, message):
    with pytest.raises(ReleaseError, match=message):
        wire.encode_release(release)


def test_dtypes_numpy_lacks_are_refused_in_words():
    with pytest.raises(ReleaseError, match="'h' is torch.bfloat16, which cannot travel"):
        wire.pack({"h": torch.zeros(2, dtype=torch.bfloat16)})


def test_a_wrong_codec_is_refused_before_the_round():
    with pytest.raises(UnknownNameError, match="Did you mean 'uint8'"):
        wire.encode_broadcast(Broadcast(1), wire.Order(0, codec="uint"))


def _without(record, key):
    def change(content):
        del content[record][key]

    return change


def _with(record, key, value):
    def change(content):
        content[record][key] = value

    return change


def _data(array: Array, data: bytes) -> Array:
    return Array(array.dtype, tuple(array.shape), array.stype, data)


def _bytes(edit):
    def change(content):
        content["set"]["x"] = _data(content["set"]["x"], edit(content["set"]["x"].data))

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("release"),
        lambda c: c.pop("counts"),
        lambda c: c.pop("metrics"),
        lambda c: c.update({"release": MetricRecord()}),
        lambda c: c.update({"set": ConfigRecord()}),
        *[_without("release", k) for k in ("round", "phase", "client", "codec")],
        *[_without("counts", k) for k in ("examples", "class-counts")],
        _with("release", "round", "one"),
        _with("release", "client", True),
        _with("release", "codec", "zip"),
        _with("counts", "examples", 1.5),
        _with("counts", "class-counts", [0.5]),
        _with("metrics", "loss", [1.0]),
        _with("set", "y", Array(np.zeros(5, dtype=np.int64))),
        _with("set", "more", Array(np.zeros(5))),
        _without("set", "x"),
        _without("set", "y"),
        _bytes(lambda b: b""),
        _bytes(lambda b: b"\x80\x04pickle"),
        _bytes(lambda b: b[:-1]),
        _bytes(lambda b: b[:20]),
        _bytes(lambda b: b.replace(b"(5, 3, 4, 4)", b"(9**9, 4, 4)")),
        _bytes(lambda b: b.replace(b"(5, 3, 4, 4)", b"(-5, 3, 4,4)")),
        _bytes(lambda b: b.replace(b"'<f4'", b"'|O4'")),
        _bytes(lambda b: b.replace(b"'<f4'", b"'<U1'")),
        _bytes(lambda b: b.replace(b"'<f4'", b"'<zz'")),
    ],
)
def test_broken_releases_are_release_errors(change):
    content = travel(wire.encode_release(A_SET))
    change(content)
    with pytest.raises(ReleaseError):
        wire.decode_release(content)


def test_a_header_that_asks_for_terabytes_allocates_nothing():
    array = Array(np.zeros(4, dtype=np.float32))
    huge = array.data.replace(b"'shape': (4,), }        ", b"'shape': (999999999999,), }"[:24])
    with pytest.raises(ReleaseError, match="no array"):
        wire.unpack(ArrayRecord({"x": _data(array, huge)}))


def test_too_large_a_release_is_refused_unread(monkeypatch):
    monkeypatch.setattr(wire, "MAX_RELEASE_BYTES", 100)
    with pytest.raises(ReleaseError, match="more than the 100 allowed"):
        wire.decode_release(wire.encode_release(A_SET))


@pytest.mark.parametrize(
    "key", ["round", "phase", "client", "settings", "codec", "client-threads", "worker", "limit-seconds"]
)
def test_broken_broadcasts_are_release_errors(key):
    content = wire.encode_broadcast(Broadcast(1), wire.Order(0))
    del content["order"][key]
    with pytest.raises(ReleaseError, match=key):
        wire.decode_broadcast(content)


@pytest.mark.parametrize("reason", ["", "one line", "\x1b[31mred\x1b[0m\n  trace\nValueError: the cause", "x" * 2000])
def test_error_texts_are_one_short_line(reason):
    from flwr.app import Error, Message
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    request = Message(RecordDict(), 5, "train")
    text = wire.error_text(Message(Error(2, reason), reply_to=request))
    assert text
    assert len(text) <= 500
    assert "\n" not in text
    assert "\x1b" not in text
    if "cause" in reason:
        assert text == "ValueError: the cause"


def test_wire_errors_are_ddfed_errors():
    assert issubclass(ReleaseError, DdfedError)


def test_a_ledger_travels_with_its_release():
    ledger = Ledger()
    for _ in range(3):
        ledger.append(PrivacyEvent("gaussian", "means", "client 1", parameters=(("sigma", 2.0),)))
    sent = Release(1, 2, ledger=ledger)
    assert wire.decode_release(travel(wire.encode_release(sent))).ledger == ledger


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000, "not a list of privacy events"),
        ("{}", None),
        ("[1]", "not a list"),
        ('[{"mechanism": "none", "query": "q", "parameters": {}}]', "not a list"),
        ('[{"mechanism": "none", "query": "q", "parameters": {}, "count": -1}]', "not a list"),
        ('[{"mechanism": ["none"], "query": "q", "parameters": {}, "count": 1}]', "not a list"),
        ('[{"mechanism": "none", "query": "q", "parameters": {"sigma": "x"}, "count": 1}]', "not a list"),
        (" " * (wire.MAX_LEDGER_CHARACTERS + 1), "more than the 65536 allowed"),
    ],
)
def test_a_ledger_that_is_none_is_refused(text: str, why: str | None):
    content = wire.encode_release(Release(0, 1))
    content["release"]["ledger"] = text
    if why is None:
        assert not wire.decode_release(content).ledger.counts, "an empty object holds no events"
        return
    with pytest.raises(ReleaseError, match=why):
        wire.decode_release(content)
