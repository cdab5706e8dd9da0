"""The columns of a condition: one list, of which all others are views; and the items that a grid asks for."""

import typing
from collections import Counter
from dataclasses import fields

import pytest

from vsr_lightning.conditions import CONDITION, FRAMES, ITEM, NUMBERS, OPERATOR, SHARED, TEXTS, Item, items_of, without
from vsr_lightning.evaluation import results
from vsr_lightning.experiment import Grid
from vsr_lightning.figures import aliasing, comparison, frame_count, report_words

SAMPLERS = {"a": {"steps": 5, "zeta": 1.0}, "b": {"steps": 7, "zeta": 2.0}}


def test_an_item_has_the_columns_that_a_sweep_does_not_share():
    assert [field.name for field in fields(Item)] == [*without(CONDITION, *SHARED), *ITEM]


def test_which_columns_are_texts():
    shared = {"seed": int, "prior": str, "dataset": str}
    types = typing.get_type_hints(Item) | shared
    assert {column for column in CONDITION if types[column] is str} == set(TEXTS)
    assert Counter((*TEXTS, *NUMBERS)) == Counter(CONDITION)


@pytest.mark.parametrize(
    ("view", "others"),
    [
        (results.COLUMNS, (*ITEM, *results.MEASURED, "status")),
        (report_words.SETTINGS, ()),
        (comparison.SETTING, ()),
    ],
    ids=["results.csv", "report", "table1.csv"],
)
def test_a_list_in_an_order_of_its_own_leaves_none_out(view, others):
    left_out = OPERATOR if view == comparison.SETTING else ()
    assert Counter(view) == Counter((*without(CONDITION, *left_out), *others))


@pytest.mark.parametrize(
    ("setting", "compared"),
    [(frame_count.SETTING, FRAMES), (aliasing.SETTING, ("num_frames", *OPERATOR)), (comparison.SETTING, OPERATOR)],
    ids=["frame_count", "aliasing", "comparison"],
)
def test_a_setting_is_what_a_figure_does_not_compare(setting, compared):
    assert {*setting, *compared} == set(CONDITION)
    assert not {*setting} & {*compared}


@pytest.mark.parametrize(
    ("lists", "conditions"),
    [
        ({}, 2),  # the samplers
        ({"factor": [4, 8], "kernel": ["box", "gaussian", "bicubic"], "sigma_h": [0.0, 1.0, 2.0]}, 2 * 2 * (1 + 3 + 1)),
        ({"factor": [4, 8], "sigma_h_per_factor": [0.25, 0.5], "zeta": [1.0, 2.0, 3.0]}, 2 * 2 * 2 * 3),
        ({"num_frames": [1, 2, 3], "order": ["random", "sequential"], "sigma_y": [0.0, 0.1], "steps": [10, 20]}, 48),
    ],
)
def test_every_combination_once(lists, conditions):
    items = items_of(Grid(videos=2, noises=3, **lists), SAMPLERS, factor=8, kernel="gaussian")
    assert len(items) == len(set(items)) == conditions * 2 * 3
    for name, values in lists.items():
        if name != "sigma_h_per_factor":
            assert {getattr(item, name) for item in items} == set(values)
    assert {item.sigma_h for item in items if item.kernel != "gaussian"} <= {0.0}
