import re
from dataclasses import replace
from itertools import combinations

import pytest

from losa_cache.pareto.figure import _short, draw, draw_costs
from losa_cache.pareto.record import Work
from losa_cache.pareto.report import write_report
from losa_cache.pareto.rows import rows
from tests.pareto.studies import ALL, finished, study

NASTY = "<script>alert(1)<b>|$x^2$"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 16])
def test_every_point_has_its_name_and_no_name_covers_another(count):
    figure = draw(rows(finished(study(*ALL[:count]))), NASTY)
    figure.canvas.draw()
    for axes in figure.axes:
        assert sorted(text.get_text() for text in axes.texts) == sorted(ALL[:count])
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not [
            (one, other) for one, other in combinations(boxes, 2)
            if min(one.x1, other.x1) > max(one.x0, other.x0) and min(one.y1, other.y1) > max(one.y0, other.y0)
        ]  # fmt: skip
        inside = axes.get_window_extent()
        assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


@pytest.mark.slow
def test_a_probe_without_parameters_lies_beside_zero():
    (probe, other) = rows(finished(study("linear", "full")))
    figure = draw([replace(probe, parameters=0), other], "")
    assert figure.axes[0].get_xlim()[0] < 0 < figure.axes[0].get_xlim()[1]


def test_a_cost_that_was_not_measured_is_said():
    figure = draw([replace(row, gmacs=None) for row in rows(finished(study("losa", "full")))], "")
    assert [text.get_text() for text in figure.axes[3].texts] == ["not measured"]


@pytest.mark.slow
def test_a_small_difference_looks_small():
    """Axes that begin at the least value made 0.7 % of GMACs the width of the figure."""
    found = rows(finished(study("losa", "full")))
    axes = draw([replace(row, gmacs=gmacs) for row, gmacs in zip(found, (0.0640, 0.0645), strict=True)], "").axes[3]
    low, high = axes.get_xlim()
    assert (0.0645 - 0.0640) / (high - low) < 0.05


@pytest.mark.parametrize(
    ("value", "said"), [(0.834, "0.834"), (0.0659, "0.0659"), (17.0, "17"), (999.6, "1 k"), (1713.2, "1.71 k")]
)
def test_numbers_of_costs_are_in_the_unit_of_their_axis(value, said):
    assert _short(value) == said


def test_costs_alone_have_a_line_for_each_method():
    figure = draw_costs(rows(finished(study(shape_only=True, dataset=None))), "vit_digits: costs")
    assert figure.legends[0].get_title().get_text() == "vit_digits: costs"
    for axes in figure.axes:
        assert len([line for line in axes.lines if line.get_marker() not in ("None", None)]) == len(ALL)


def test_the_page_stands_alone_and_escapes_every_name(tmp_path):
    begun = finished(study("losa", "full", dataset=NASTY))
    works = {**begun.works, (name := [*begun.works][-1]): Work(error=NASTY)}
    page = write_report(replace(begun, works=works), tmp_path)
    found = page.read_text()
    assert "<script" not in found
    assert "&lt;script&gt;" in found
    assert not re.findall(r'(?:src|href)="(?!data:)', found)
    assert found.count("<h1>") == 1
    assert re.search(r'<img alt="[^"]{40,}"', found)
    assert name.startswith("full/")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
