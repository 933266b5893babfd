"""What a defense multiplies weights by: by hand, of artifacts, and figures of kind masks."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import small
from conftest import Project
from depoison.errors import DepoisonError
from depoison.models.classifier import Classifier
from depoison.papers.figures import Figure
from depoison.reports.figures import masks
from depoison.reports.figures.write import render_figure
from depoison.stages.masks import counted, factors
from test_figures import fake, own_figure, rows_of

MASKS: dict[str, Any] = {
    "title": "Masks", "caption": "Masks", "kind": "masks", "dataset": "cifar10", "model": "resnet18",
    "attack": "badnet+rate=0.1", "axes": {"columns": [{"label": "NFT", "defense": "nft+epochs=2"}]},
}  # fmt: skip


# --- by hand -----------------------------------------------------------------------------------------------------


def test_factors_are_those_of_the_convolutions_weights_that_are_not_0():
    before = small.network()
    weight = before.extractor[0].weight
    with torch.no_grad():
        weight[0, 0, 0] = torch.tensor([0.0, 2.0, -4.0])
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.extractor[0].weight[0, 0, 0] = torch.tensor([7.0, 1.0, 1.0])
        after.head[-1].weight.mul_(0.5)
    found = factors(before, after)
    assert found.shape == (weight.numel() - 1,) and found[:2].tolist() == [0.5, -0.25] and (found[2:] == 1).all()


@given(st.lists(st.floats(-2, 3, allow_subnormal=False), min_size=1, max_size=50))
def test_each_factor_is_counted_once_where_it_lies(values):
    counts = counted(torch.tensor(values, dtype=torch.float64))
    expected = np.zeros(102, int)
    for value in values:
        expected[
            0 if value < 0 else 101 if value >= 1 else 1 + np.searchsorted(np.arange(100) / 100, value, "right") - 1
        ] += 1
    assert counts.tolist() == expected.tolist()


def test_what_has_no_factors_is_refused():
    flat = Classifier(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(DepoisonError, match=r"^masks: the model has no convolutions, .*; valid: one with them$"):
        factors(flat, flat)
    broken = small.network()
    with torch.no_grad():
        broken.extractor[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(DepoisonError, match="^masks: weights are no numbers; .* diverged$"):
        factors(small.network(), broken)


# --- figures -----------------------------------------------------------------------------------------------------


def figure_of(project: Project, **changes: Any) -> Figure:
    return own_figure(project, "figure94", MASKS, **changes)


def test_those_of_nft_are_in_0_and_1_and_some_are_where_they_began(made, monkeypatch):
    monkeypatch.chdir(made.path)
    (artifact,) = figure_of(made).artifacts()
    assert artifact.stage == "masks" and set(artifact.upstream) == {"dataset", "backdoored", "model"}
    small.make(artifact, made.plan().configuration.config.runtime)
    with Path(artifact.product).open() as file:
        rows = [(float(row["factor"]), int(row["weights"])) for row in csv.DictReader(file)]
    assert [factor for factor, _ in rows] == pytest.approx([place / 100 for place in range(-1, 101)])
    assert rows[0][1] == 0 and rows[-1][1] > 0  # none below 0, and some masks are where they began
    assert sum(count for factor, count in rows if factor < 1) > 0  # and some are not


@pytest.mark.parametrize("defense", ["none", "abl"])
def test_what_changes_no_backdoored_model_is_refused_while_planning(defense, tiny):
    told = rf"tiny/.*/{defense}/s0.json: masks: {defense} does not change a backdoored model; valid: .* such as ft"
    with pytest.raises(DepoisonError, match=told):
        figure_of(tiny, axes={"columns": [{"label": "?", "defense": defense}]})


def test_its_numbers_and_its_picture(tiny, monkeypatch):
    monkeypatch.chdir(tiny.path)
    columns = [{"label": "AWM", "defense": "awm"}, {"label": "?", "defense": "anything"}]
    figure = figure_of(tiny, axes={"columns": columns}, unimplemented=["anything"])
    fake(figure)  # 3 below 0, 1 at each hundredth, 97 at 1
    rows = rows_of(render_figure(figure))
    assert len(rows) == 102 + 1 and sum(float(row["share"]) for row in rows[:-1]) == pytest.approx(100)
    assert [float(rows[place]["share"]) for place in (0, 1, 101)] == [1.5, 0.5, 48.5] and rows[-1]["gap"]
    canvas = masks.draw(figure, masks.numbers(figure))
    drawn, empty = canvas.axes
    assert drawn.get_title() == "AWM" and drawn.get_xlabel() == "Factor" and drawn.get_ylabel() == "Weights (%)"
    assert [bar.get_height() for bar in drawn.patches][::101] == [1.5, 48.5]
    assert drawn.patches[0].get_x() == pytest.approx(-0.01) and not empty.patches
    assert empty.texts[0].get_text() == "not available"
