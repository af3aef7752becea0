"""Rows in memory, their class index, and what is refused."""

from __future__ import annotations

import pytest
import torch

from ddfed.data import RealData, Task
from ddfed.errors import ConfigError, DataError
from ddfed.testing import twin_task

TASK = twin_task()
INFO = TASK.info


def some(labels: list[int]) -> RealData:
    return RealData(
        torch.arange(len(labels) * 32, dtype=torch.uint8).view(-1, 2, 4, 4), torch.tensor(labels), INFO, 1 / 255
    )


def test_the_class_index_holds_every_row_once_and_in_order():
    data = some([2, 0, 2, 2, 0])
    assert [rows.tolist() for rows in data.class_index] == [[1, 4], [], [0, 2, 3]]
    assert data.class_counts.tolist() == [2, 0, 3]


def test_a_batch_is_stored_values_times_scale_in_model_space():
    data = some([0, 1])
    batch = data.batch(torch.tensor([1, 0]))
    natural = data.inputs[[1, 0]].float() / 255
    assert torch.allclose(batch.inputs, (natural - 0.5) / 0.25)
    assert batch.classes.tolist() == [1, 0] and len(batch) == 2 and batch.inputs.dtype == torch.float32
    assert torch.equal(data.all().inputs, data.batch(torch.arange(2)).inputs)


def test_a_subset_keeps_the_order_asked_for_and_may_be_empty():
    data = some([0, 1, 2])
    assert data.subset([2, 0]).labels.tolist() == [2, 0]
    nothing = data.subset([])
    assert len(nothing) == 0 and nothing.class_counts.tolist() == [0, 0, 0] and len(nothing.all()) == 0
    assert nothing.content_hash != data.content_hash


@pytest.mark.parametrize(
    ("inputs", "labels", "words"), [(2, [0], "2 inputs but 1 labels"), (2, [0, 3], "from 0 to 3"), (1, [-1], "from -1")]
)
def test_rows_that_do_not_fit_the_task_are_refused(inputs: int, labels: list[int], words: str):
    with pytest.raises(DataError, match=words):
        RealData(torch.zeros(inputs, 2, 4, 4), torch.tensor(labels), INFO)


def test_the_content_hash_sees_values_labels_order_and_type():
    data = some([0, 1, 2])
    others = [
        data.subset([0, 2, 1]),
        RealData(data.inputs, torch.tensor([0, 1, 1]), INFO),
        RealData(data.inputs.to(torch.int16), data.labels, INFO),
        RealData(data.inputs.flatten(1), data.labels, INFO),
    ]
    assert len({d.content_hash for d in (data, *others)}) == 5
    assert some([0, 1, 2]).content_hash == data.content_hash


def test_limits_are_class_balanced_and_change_nothing_else():
    cut = TASK.limit(7, 3)
    assert (len(cut.train), len(cut.test)) == (7, 3)
    assert max(cut.train.class_counts) - min(cut.train.class_counts) <= 1
    assert cut.test.class_counts.tolist() == [1, 1, 1]
    assert TASK.limit(None, 10**6).train is TASK.train
    assert torch.equal(TASK.limit(7, 3).train.inputs, cut.train.inputs)


def test_a_limit_takes_what_a_small_class_has():
    task = Task(INFO, some([0, 0, 0, 0, 1, 2]), TASK.test).limit(5, None)
    assert task.train.class_counts.tolist() == [3, 1, 1]


def test_a_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(ConfigError, match="train_limit = 2 is smaller than the 3 classes"):
        TASK.limit(2, None)
