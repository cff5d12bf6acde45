import re
from dataclasses import replace
from itertools import combinations

import pytest

from losa_cache.pareto.figure import draw, draw_costs
from losa_cache.pareto.record import Work
from losa_cache.pareto.report import write_report
from losa_cache.pareto.rows import rows
from tests.pareto.studies import ALL, finished, study

NASTY = "<script>alert(1)<b>|$x^2$"


@pytest.mark.parametrize("count", [1, 16])
def test_every_point_has_its_name_and_no_name_covers_another(count):
    figure = draw(rows(finished(study(*ALL[:count]))))
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


def test_a_probe_without_parameters_lies_beside_zero():
    (probe, other) = rows(finished(study("linear", "full")))
    figure = draw([replace(probe, parameters=0), other])
    assert figure.axes[0].get_xlim()[0] < 0 < figure.axes[0].get_xlim()[1]


def test_a_cost_that_was_not_measured_is_said():
    figure = draw([replace(row, gmacs=None) for row in rows(finished(study("losa", "full")))])
    assert [text.get_text() for text in figure.axes[3].texts] == ["not measured"]


def test_costs_alone_have_a_line_for_each_method():
    figure = draw_costs(rows(finished(study(shape_only=True, dataset=None))))
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
