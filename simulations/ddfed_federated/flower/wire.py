"""Broadcasts and releases as Flower records, and how many bytes they take.

One layout for all methods::

    down   config "order": round, phase, client, method, settings (JSON text), codec, client-threads, worker
           arrays "weights": the global model's state dict      arrays "arrays": anything else
           metrics "scalars"
    up     config "release": round, phase, client, codec, ledger (JSON text)
           any of: arrays "set": x (+ x_low, x_high), y as int16, soft as float16
                   arrays "weights": named tensors              arrays "statistics": named tables
           metrics "counts": examples, class-counts             metrics "metrics"

A set is two to four arrays however many classes it holds: each array costs a header of about 150 bytes.
Decoding trusts nothing: a missing key, a wrong type or bytes that are no array raise `ReleaseError`.
"""

from __future__ import annotations

import ast
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import array_to_proto, recorddict_to_proto
from torch import Tensor

from ddfed.errors import ReleaseError, one_of
from ddfed.federation import MAX_RELEASE_BYTES, PAYLOADS, Broadcast, Release
from ddfed.ledger import Ledger
from ddfed_federated import codecs

#: ``module:function`` that does a client's work; see `client_app`.
DEFAULT_WORKER = "ddfed_federated.worker:answer"

#: What bytes are spent on.
SPENT = ("weights", "items", "labels", "statistics", "control")
#: An honest round asks a handful of questions; equal ones are counted, not listed.
MAX_LEDGER_CHARACTERS = 2**16
_INT16_MAX = 2**15 - 1
_DTYPES = {
    "float16", "float32", "float64", "complex64", "uint8", "int8", "int16", "int32", "int64", "bool",
}  # fmt: skip
#: What reading bytes that are no array may raise.
_BROKEN = (ValueError, KeyError, TypeError, SyntaxError, IndexError, struct.error, MemoryError, RecursionError)
_NPY_MAGIC = b"\x93NUMPY"

T = TypeVar("T")
Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)


@dataclass(frozen=True)
class Order:
    """What a client is to do, besides the broadcast itself.

    Args:
        client: partition id the message is meant for.
        method: name of the federated method.
        settings: the run's settings as JSON text; Flower's records hold no nested values.
        codec: how the items of a set travel back.
        client_threads: torch threads of one client.
        worker: ``module:function`` that does the work.
        limit_s: on Ray, the client's process ends itself after so many seconds of one message, so that a
            client that never answers does not keep a worker for ever; 0 for no limit. Elsewhere it has no
            effect: `grid.LocalGrid` stops late workers itself.
    """

    client: int
    method: str = ""
    settings: str = "{}"
    codec: str = "float32"
    client_threads: int = 1
    worker: str = DEFAULT_WORKER
    limit_s: float = 0.0


def pack(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Named tensors as a record, in their order and dtype.

    Raises:
        ReleaseError: a dtype that numpy does not have, such as bfloat16.
    """
    record: dict[str, Array] = {}
    for name, tensor in tensors.items():
        try:
            record[name] = Array(tensor.detach().cpu().contiguous().numpy())
        except TypeError as error:
            raise ReleaseError(
                f"{name!r} is {tensor.dtype}, which cannot travel; convert it, possible are {one_of(sorted(_DTYPES))}"
            ) from error
    return ArrayRecord(record)


def unpack(record: ArrayRecord, who: str = "record", limit: int | None = None) -> dict[str, Tensor]:
    """The inverse of `pack`. Sizes are checked against the bytes before anything is allocated.

    Args:
        record: as it came.
        who: beginning of an error message.
        limit: most bytes of all arrays together; None for no bound.

    Raises:
        ReleaseError: names the array that is broken.
    """
    total = sum(len(array.data) for array in record.values())
    if limit is not None and total > limit:
        raise ReleaseError(f"{who}: {total} bytes of arrays, more than the {limit} allowed")
    return {name: torch.from_numpy(_read_npy(array, f"{who}: {name!r}")) for name, array in record.items()}


def _read_npy(array: Array, who: str) -> np.ndarray:
    """Read an array from its NPY bytes, with numpy's own reader kept away from a header nobody checked.

    numpy allocates what the header asks for before it looks at how many bytes there are.
    """
    data = array.data
    try:
        if data[:6] != _NPY_MAGIC or array.stype != "numpy.ndarray":
            raise ValueError(f"not an NPY array but {array.stype!r}")
        wide = data[6] > 1
        (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
        start = (12 if wide else 10) + length
        header = ast.literal_eval(data[12 if wide else 10 : start].decode("latin1")) if length < 10_000 else {}
        shape, dtype = header["shape"], np.dtype(header["descr"])
        if dtype.name not in _DTYPES:
            raise ValueError(f"dtype {dtype.name}; possible are {one_of(sorted(_DTYPES))}")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape {shape}")
        if len(data) - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(data) - start} bytes for shape {shape} of {dtype}")
        flat = np.frombuffer(data, dtype=dtype, offset=start)
        shaped = flat.reshape(shape, order="F") if header["fortran_order"] else flat.reshape(shape)
        return shaped.astype(dtype.newbyteorder("="), order="C", copy=True)
    except _BROKEN as error:
        raise ReleaseError(f"{who} is no array: {error}") from error


def _record(content: RecordDict, name: str, kind: type[Record], who: str) -> Record:
    found = content.get(name)
    if not isinstance(found, kind):
        raise ReleaseError(f"{who}: needs a {kind.__name__} called {name!r}, holds {one_of(sorted(content))}")
    return found


def _field(record: Mapping[str, Any], name: str, kind: type[T], who: str) -> T:
    found = record.get(name)
    # bool is an int for isinstance, and no number for us.
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ReleaseError(f"{who}: {name!r} must be {kind.__name__}, got {found!r:.80}")
    return found


def _floats(record: MetricRecord, who: str) -> dict[str, float]:
    for name, value in record.items():
        if isinstance(value, list):
            raise ReleaseError(f"{who}: {name!r} must be a number, got a list of {len(value)}")
    return {name: float(value) for name, value in record.items()}  # type: ignore[arg-type]


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors as float32; counters keep their dtype."""
    return {k: v.detach().to(torch.float32) if v.is_floating_point() else v.detach() for k, v in weights.items()}


def encode_broadcast(broadcast: Broadcast, order: Order) -> RecordDict:
    """A message's content for one client.

    Args:
        broadcast: weights travel as float32 (integer buffers unchanged), other arrays in their dtype.
        order: the rest.

    Raises:
        UnknownNameError: no such codec. Checked here, before a round is spent.
        ReleaseError: a tensor of a dtype that cannot travel.
    """
    return encode_broadcasts(broadcast, [order])[0]


def encode_broadcasts(broadcast: Broadcast, orders: list[Order]) -> list[RecordDict]:
    """`encode_broadcast` for many clients; the arrays are packed once and shared."""
    weights, arrays = pack(_plain(broadcast.weights)), pack(broadcast.arrays)
    scalars = MetricRecord({name: float(value) for name, value in broadcast.scalars.items()})
    contents = []
    for order in orders:
        config = ConfigRecord(
            {
                "round": int(broadcast.round),
                "phase": broadcast.phase,
                "client": int(order.client),
                "method": order.method,
                "settings": order.settings,
                "codec": codecs.codec_name(order.codec),
                "client-threads": int(order.client_threads),
                "worker": order.worker,
                "limit-seconds": float(order.limit_s),
            }
        )
        contents.append(RecordDict({"order": config, "weights": weights, "arrays": arrays, "scalars": scalars}))
    return contents


def decode_broadcast(content: RecordDict) -> tuple[Broadcast, Order]:
    """The inverse of `encode_broadcast`.

    Raises:
        ReleaseError: a record or key is missing or of the wrong type.
    """
    who = "broadcast"
    config = _record(content, "order", ConfigRecord, who)
    order = Order(
        client=_field(config, "client", int, who),
        method=_field(config, "method", str, who),
        settings=_field(config, "settings", str, who),
        codec=_field(config, "codec", str, who),
        client_threads=_field(config, "client-threads", int, who),
        worker=_field(config, "worker", str, who),
        limit_s=_field(config, "limit-seconds", float, who),
    )
    broadcast = Broadcast(
        round=_field(config, "round", int, who),
        phase=_field(config, "phase", str, who),
        weights=unpack(_record(content, "weights", ArrayRecord, who), who),
        arrays=unpack(_record(content, "arrays", ArrayRecord, who), who),
        scalars=_floats(_record(content, "scalars", MetricRecord, who), who),
    )
    return broadcast, order


def _pack_labels(y: Tensor) -> Tensor:
    if y.is_floating_point() or y.is_complex():
        raise ReleaseError(
            f"labels of a set are {y.dtype}; 'y' holds classes (integers), soft targets travel as 'soft'"
        )
    if y.numel() and int(y.abs().max()) > _INT16_MAX:
        raise ReleaseError(
            f"labels run from {int(y.min())} to {int(y.max())}; they travel as int16, up to {_INT16_MAX}"
        )
    return y.to(torch.int16)


def encode_release(release: Release, codec: str = "float32") -> RecordDict:
    """A reply's content.

    Args:
        release: the codec is applied to ``x`` of a set; weights travel as float32, soft labels as float16, tables in
            their dtype.
        codec: one of `codecs.CODECS`.

    Raises:
        ReleaseError: an unknown payload, a set without ``x`` and ``y``, or values the codec cannot hold.
        UnknownNameError: no such codec.
    """
    who = f"client {release.client}, round {release.round}"
    name = codecs.codec_name(codec)
    odd = sorted(set(release.payload) - set(PAYLOADS))
    if odd:
        raise ReleaseError(f"{who}: unknown payload {odd[0]!r}; possible are {one_of(PAYLOADS)}")
    config = ConfigRecord(
        {
            "round": int(release.round),
            "phase": release.phase,
            "client": int(release.client),
            "codec": name,
            "ledger": json.dumps(release.ledger.to_json(), separators=(",", ":")),
        }
    )
    counts: dict[str, Any] = {"examples": int(release.examples), "class-counts": [int(n) for n in release.class_counts]}
    content = RecordDict(
        {
            "release": config,
            "counts": MetricRecord(counts),
            "metrics": MetricRecord({key: float(value) for key, value in release.metrics.items()}),
        }
    )
    if release.set:
        content["set"] = _pack_set(release.set, name, who)
    if release.weights:
        content["weights"] = pack(_plain(release.weights))
    if release.statistics:
        content["statistics"] = pack(release.statistics)
    return content


def _pack_set(arrays: Mapping[str, Tensor], codec: str, who: str) -> ArrayRecord:
    if not {"x", "y"} <= set(arrays) <= {"x", "y", "soft"}:
        raise ReleaseError(f"{who}: a set has the arrays 'x', 'y' and may have 'soft', got {one_of(sorted(arrays))}")
    packed = {**codecs.encode(arrays["x"], codec), "y": _pack_labels(arrays["y"])}
    if "soft" in arrays:
        packed["soft"] = arrays["soft"].to(torch.float16)
    return pack(packed)


def decode_release(content: RecordDict) -> Release:
    """The inverse of `encode_release`; what it gives has not been checked against the task yet.

    Raises:
        ReleaseError: a record or key is missing or of the wrong type, or bytes are no array.
    """
    config = _record(content, "release", ConfigRecord, "release")
    client = _field(config, "client", int, "release")
    round_number = _field(config, "round", int, "release")
    who = f"client {client}, round {round_number}"
    counts = _record(content, "counts", MetricRecord, who)
    per_class = _field(counts, "class-counts", list, who)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in per_class):
        raise ReleaseError(f"{who}: class counts must be integers, got {per_class!r:.80}")
    return Release(
        client=client,
        round=round_number,
        phase=_field(config, "phase", str, who),
        payload=_decode_payload(content, _field(config, "codec", str, who), who),
        examples=_field(counts, "examples", int, who),
        class_counts=tuple(per_class),
        metrics=_floats(_record(content, "metrics", MetricRecord, who), who),
        ledger=_ledger(_field(config, "ledger", str, who), who),
    )


def _ledger(text: str, who: str) -> Ledger:
    """A client's ledger; refused when it is no ledger or too long to be an honest one."""
    if len(text) > MAX_LEDGER_CHARACTERS:
        raise ReleaseError(
            f"{who}: its ledger has {len(text)} characters, more than the {MAX_LEDGER_CHARACTERS} allowed"
        )
    try:
        return Ledger.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ReleaseError(f"{who}: its ledger is not a list of privacy events") from None


def _decode_payload(content: RecordDict, codec: str, who: str) -> dict[str, dict[str, Tensor]]:
    arrays = {
        kind: unpack(_record(content, kind, ArrayRecord, who), who, MAX_RELEASE_BYTES)
        for kind in PAYLOADS
        if kind in content
    }
    if "set" in arrays:
        arrays["set"] = _unpack_set(arrays["set"], codec, who)
    return arrays


def _unpack_set(parts: Mapping[str, Tensor], codec: str, who: str) -> dict[str, Tensor]:
    if codec not in codecs.CODECS:
        raise ReleaseError(f"{who}: unknown codec {codec!r}; possible are {one_of(codecs.CODECS)}")
    wanted = {*codecs.parts_of(codec), "y"}
    if set(parts) not in (wanted, wanted | {"soft"}):
        raise ReleaseError(f"{who}: a set in {codec!r} has {one_of(sorted(wanted))}, got {one_of(sorted(parts))}")
    if parts["y"].dtype != torch.int16:
        raise ReleaseError(f"{who}: labels travel as int16, got {parts['y'].dtype}")
    try:
        x = codecs.decode({k: v for k, v in parts.items() if k != "soft"}, codec)
    except ReleaseError as error:
        raise ReleaseError(f"{who}: {error}") from error
    soft = {"soft": parts["soft"].to(torch.float32)} if "soft" in parts else {}
    return {"x": x, "y": parts["y"].to(torch.int64), **soft}


def payload_bytes(content: RecordDict) -> dict[str, int]:
    """Serialised size of a message's content, by what it is spent on.

    Returns:
        Bytes under the names of `SPENT`, where ``control`` is everything else (settings, metrics, record headers);
        their sum is the size of the serialised content. Array headers count with the array. What a method sends
        down beside weights counts by its name: ``.../x`` as items, ``.../y`` as labels, all else as statistics.
    """
    spent = dict.fromkeys(SPENT, 0)
    for record_name, record in content.array_records.items():
        for name, array in record.items():
            spent[_spent_on(record_name, name)] += array_to_proto(array).ByteSize()
    spent["control"] = recorddict_to_proto(content).ByteSize() - sum(spent.values())
    return spent


def _spent_on(record: str, name: str) -> str:
    if record == "weights":
        return "weights"
    last = name.rpartition("/")[2]
    if record == "set":
        return "labels" if last in ("y", "soft") else "items"
    if record == "arrays" and "/" in name:
        return {"x": "items", "y": "labels", "soft": "labels"}.get(last, "statistics")
    return "statistics"


def error_text(reply: Message, limit: int = 500) -> str:
    """Why a client failed, in one line: no traceback, no colour codes.

    Args:
        reply: a message for which ``has_error()`` holds.
        limit: longest text, in characters.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", reply.error.reason or "")
    # Flower writes <class 'module.Name'>:<'text'> for what its back end raised.
    text = re.sub(r"^<class '(?:\w+\.)*(\w+)'>:<'(.*)'>$", r"\1: \2", text.strip(), flags=re.DOTALL)
    if re.match(r"Actor(Died|Unavailable)Error", text):
        text = f"the client's process ended ({' '.join(text.split())})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return f"code {reply.error.code}"
    # Ray puts its own traceback around the cause; the cause's last line is the one people need.
    line = next((s for s in reversed(lines) if "Error" in s or "Exception" in s), lines[-1])
    return line if len(line) <= limit else line[: limit - 3] + "..."
