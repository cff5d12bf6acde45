"""The report and its figures, as another parser and another decoder read them."""

import base64
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from losa_cache.errors import UserError
from losa_cache.sweep.engine.record import ProbeLine, ToBeat
from losa_cache.sweep.report.figures import accuracy, curves, draw
from losa_cache.sweep.report.findings import findings
from losa_cache.sweep.report.report import write_report
from tests.sweep.records import sweep, trial

HOSTILE = "</pre><script src='https://evil.example/x.js'>alert(\"1\")</script> & $\\frac{1$ \x00"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.text[tag][-1] += data


def many(count, **options):
    """Trials of four ranks, three rates and two seeds; some are pruned, one failed."""
    trials = [
        trial(
            n,
            70 + n % 23 / 3,
            state="pruned" if n % 5 == 4 else "complete",
            parameters=1000 * 2 ** (n % 4),
            epochs=2 if n % 5 == 4 else 6,
            **{"rank": 2 ** (n % 4), "lr": 10.0 ** -(n // 4 % 3 + 1), "seed": n // 12} | options,
        )
        for n in range(count)
    ]
    return [*trials, trial(count, state="failed", rank=2, lr=1.0, seed=0)]


def read(record, folder):
    return Page(write_report(record, folder).read_text("utf-8"))


@pytest.mark.parametrize("count", [1, *(pytest.param(own, marks=pytest.mark.slow) for own in (3, 64, 200))])
def test_a_page_needs_nothing_else_and_shows_the_figures_beside_it(tmp_path, count):
    trials = many(count)
    page = read(sweep(trials, chosen=0), tmp_path)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "background")]
    assert sources
    pictures = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources}
    assert pictures == {path.read_bytes() for path in tmp_path.glob("*.png")}
    assert not re.search(r"url\(|@import", page.text["style"][0])
    (policy,) = [value for _, name, value in page.attributes if name == "content" and "-src" in value]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    table = page.text["table"][0]
    assert table.count("complete") == sum(t.state == "complete" for t in trials)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["report.html", "accuracy.png", "curves.png", "effects.png"]
    )


@pytest.mark.usefixtures("no_figures")
def test_trials_stand_in_order_and_the_command_is_exact(tmp_path):
    command = "losa-cache train --cache 'two  words.zarr' \\\n  --rank 8"
    trials = [
        trial(0, 80.0, parameters=10, rank=1),
        trial(1, 90.0, parameters=20, rank=2, command=command),
        trial(2, 99.0, state="pruned"),
        trial(3, state="failed"),
        trial(4, 85.0, parameters=30, rank=3),
    ]
    page = read(sweep(trials, chosen=1), tmp_path)
    assert page.text["pre"] == [command, trials[0].command]  # the chosen one's, and the rest of the Pareto front
    rows = page.text["tr"][1:6]  # behind the head; the effects come after
    assert [row[0] for row in rows] == ["1", "4", "0", "2", "3"]
    assert "chosen" in rows[0]
    assert ("tr", "class", "chosen") in page.attributes
    assert "10 trials an hour" in page.text["main"][0]  # five in half an hour


def test_hostile_names_are_text(tmp_path):
    plain = read(sweep(many(3), chosen=0), tmp_path / "plain")
    fields = ("title", "cache", "identity", "dataset", "validated_on", "protocol", "machine")
    page = read(sweep(many(3), chosen=0, **dict.fromkeys(fields, HOSTILE)), tmp_path / "hostile")
    assert page.tags == plain.tags
    assert page.text["body"][0].count(HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}")) == len(fields)
    assert page.text["title"][0].startswith("</pre><script src=")


def test_hostile_options_and_commands_are_text(tmp_path):
    trials = [trial(n, 80.0 + n, command=HOSTILE.strip("\x00"), **{HOSTILE: f"{HOSTILE}{n}"}) for n in range(3)]
    test = {"on": HOSTILE, "split": HOSTILE, "samples": 9, "top1": 1.0, "top5": 2.0, "loss": 3.0, "retrained": False}
    page = read(sweep(trials, chosen=0, test=test), tmp_path)
    assert "script" not in page.tags
    assert page.text["pre"][0] == HOSTILE.strip("\x00")


def test_names_that_are_no_unicode_are_written_all_the_same(tmp_path):
    assert "caf\\udce9.zarr" in read(sweep(many(3), cache="caf\udce9.zarr"), tmp_path).text["main"][0]


@pytest.mark.usefixtures("no_figures")
def test_no_letter_reorders_others_or_is_a_control_character(tmp_path):
    trials = [trial(0, 80.0, command="a\u202eb", layers="\x1b[2J\u2066<script>")]
    text = read(sweep(trials, chosen=0, cache="\u202egpj.exe"), tmp_path).text["main"][0]
    assert not set("\u202e\u2066\x1b") & set(text)
    assert "[2J\N{REPLACEMENT CHARACTER}<script>" in text


def test_what_cannot_be_drawn_is_said(tmp_path):
    page = read(sweep([trial(n, state="failed", rank=n) for n in range(3)]), tmp_path)
    assert "No trial has a validation result" in page.text["main"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert read(sweep([]), tmp_path).text["h1"] == ["a sweep"]


ODD = {
    "one": [trial(0, 80.0, rank=4)],
    "all alike": [trial(n, 80.0, rank=4, seed=n) for n in range(3)],
    "zero parameters and one epoch": [trial(n, 80.0 + n, parameters=n * 100, epochs=1, rank=n) for n in range(3)],
    "pruned alone": [trial(n, 80.0, state="pruned", rank=n) for n in range(3)],
    "a short one is best": [trial(0, 90.0, epochs=4, rank=1), trial(1, 80.0, epochs=60, rank=2)],
    "everything right": [trial(n, 100.0, rank=n) for n in range(3)],
    "continuous with zero": [trial(n, 80.0 + n, decay=10.0**-n if n < 11 else 0.0) for n in range(12)],
    "negative": [trial(n, 80.0 + n, shift=n - 6.0) for n in range(12)],
    "many names": [trial(n, 80.0 + n, layers=[n, n + 1, 12], on=bool(n % 2), to=[None, "x"][n % 2]) for n in range(20)],
    "six": [trial(n, 80.0 + n % 7, **{f"option_{i}": n * (i + 1) % 13 for i in range(6)}) for n in range(60)],
}


QUICK = "all alike", "pruned alone", "many names"


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ODD if name not in QUICK)]
)
def test_figures_decode_and_are_not_blank(name):
    figures = draw(sweep(ODD[name], chosen=0))
    assert "curves" in figures
    assert ("accuracy" in figures) == (name != "pruned alone")
    for png in figures.values():
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        assert pixels.shape[1] == 1200
        assert 0.002 < (pixels.min(axis=2) < 200).mean() < 0.5


def test_the_chosen_trial_is_marked():
    def reddish(chosen):
        pixels = np.asarray(Image.open(io.BytesIO(draw(sweep(many(20), chosen=chosen))["accuracy"])).convert("RGB"))
        return (np.abs(pixels.astype(int) - [0xD5, 0x5E, 0x00]).sum(axis=2) < 30).sum()

    assert reddish(None) == 0
    assert reddish(0) > 100


def test_the_line_to_beat_is_level_in_the_figures_and_its_distance_is_said(tmp_path):
    probe = ToBeat([ProbeLine("last layer", "cls", 0.1, 71.0), ProbeLine("all layers", "both", 0.01, 83.5)], "How.")
    record = sweep([trial(n, 80.0 + n, parameters=n + 1, rank=n) for n in range(3)], chosen=2, to_beat=probe)
    for figure in (accuracy(record), curves(record)):
        levels = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
        assert levels["probe, last layer: 71.0 %"] == [71.0, 71.0]
        assert levels["probe, all layers: 83.5 %"] == [83.5, 83.5]
    text = read(record, tmp_path).text["main"][0]
    assert "The chosen trial is 1.5 points below the better of these" in text
    assert "one standard error of a top-1 on these 100 samples is 3.7 points. How." in text
    lower = {"ece": 4.0}  # of this metric lower is better
    lines = [replace(probe.lines[0], others=lower), replace(probe.lines[1], others={"ece": 9.0})]
    trials = [
        replace(own, chosen_by="ece", curve=[line | {"val_ece": 6.0} for line in own.curve]) for own in record.trials
    ]
    calibrated = replace(record, chosen_by="ece", trials=trials, to_beat=ToBeat(lines, "How."))
    told = findings(calibrated)["Line to beat"]
    assert told.startswith("Probe, last layer: calibration error 4.0 % held out") and "71.0" not in told
    assert "The chosen trial is 2.0 points above the better of these." in told
    assert findings(replace(calibrated, to_beat=probe))["Line to beat"] == "How."  # of an earlier version
    refused = replace(record, to_beat=ToBeat([], "There is no probe."))
    assert "Line to beatThere is no probe." in read(refused, tmp_path).text["main"][0].replace("\n", "")


def test_without_matplotlib_a_sentence_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'losa-cache\[sweep\]'"):
        write_report(sweep(many(3)), tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"report folder .*taken.* cannot be written"):
        write_report(sweep(many(3)), tmp_path / "taken")
