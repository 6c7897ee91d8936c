"""The report of made-up runs: what it compares, says and escapes, and how it looks."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_runs import group, make, right
from matplotlib.figure import Figure
from PIL import Image

from deit_jax.errors import InputError
from deit_jax.report import report
from deit_jax.reporting import (
    confusion,
    contents,
    document,
    figures,
    learning,
    results,
    runs,
)
from deit_jax.reporting.labels import readable

NASTY = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOSSES = (1.0, 0.75, 0.5)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    facts = {
        "class_names": ["cat", NASTY, "$x_1$ a|b", "_owl*"],
        "steps": 30,
        "batch_size": 8,
        "parameters": 123456,
        "flops_per_image": 2_000_000_000,
        "seconds": 36.0,
        "teacher": {"arch": NASTY, "top1": 0.5, "top1_split": "val"},
        "devices": ["cpu", "cpu"],
        "versions": {"jax": "0.10.2"},
    }
    made = {"losses": LOSSES, "facts": facts}
    old = made | {"facts": facts | {"flops_per_image": None}, "tables": False}
    other = {"dataset": {"name": "cars $1$"}}
    return [
        make(root / "base-seed0", right(80, 40), **made),
        make(root / "better", right(80, 70), sure=3, config={"x": 1}, **made),
        make(root / "base-seed1", right(80, 48), seed=1, **made),
        make(
            root / "killed",
            right(80, 80),
            finished=False,
            losses=LOSSES[:2],
            config={"epochs": 7},
        ),
        make(root / "old", right(80, 50), config={"x": 5}, kept=False, **old),
        make(root / f"other {NASTY[:8]}", right(80, 79), config=other, **made),
    ]


@pytest.fixture(scope="module")
def page(directories, tmp_path_factory):
    return report(directories, tmp_path_factory.mktemp("report") / "a" / "b")


def shown(blocks, column, number=0):
    """By run, the cell under a title of a table among the blocks."""
    table = [b for b in blocks if isinstance(b, document.Table)][number]
    place = list(table.header).index(column)
    cells = {row[0]: row[place] for row in table.rows}
    return {
        name: cell if isinstance(cell, document.Cell) else document.Cell(cell)
        for name, cell in cells.items()
    }


def test_seeds_are_a_mean_and_what_is_best_is_bold(directories):
    blocks = results.scores(group(*directories[:5]))
    top1, nll = (shown(blocks, column) for column in ("top-1 %", "NLL"))
    assert list(top1) == ["base", "better", "killed (unfinished, step 20)", "old"]
    assert top1["base"].text == "55.00"
    assert top1["base"].note == f"± {np.std([50, 60], ddof=1):.2f}"
    assert top1["better"].note == "+32.50"
    assert float(nll["better"].note) < 0
    for cells in (top1, nll):  # the unfinished one would be better
        assert [name for name, cell in cells.items() if cell.best] == ["better"]
    assert shown(blocks, "top-1 %", 1)["base-seed1"].text == "60.00"


def test_what_cannot_be_compared_is_said(directories):
    blocks = contents._overview(group(*directories))
    said = " ".join(b.text for b in blocks if isinstance(b, document.Text))
    assert "Unfinished: killed." in said
    assert "different data: pets train val; cars $1$ ? ?" in said
    assert "Without tables by class and by confidence in summary.json: old." in said
    assert "base stands for base-seed0, base-seed1" in said


def test_other_classes_are_other_data(tmp_path):
    one = make(tmp_path / "one", right(40, 20), losses=LOSSES)
    more = {"class_names": ["cat", "dog", "owl", "eel"]}
    two = make(tmp_path / "two", right(40, 20), facts=more, config={"x": 1})
    stopped = {"config": {"x": 2}, "losses": LOSSES, "finished": False}
    three = make(tmp_path / "three", right(40, 20), **stopped)
    parts = contents._by_data(group(one, two, three))
    names = [[g.name for g in members] for _, members in parts]
    assert names == [["one", "three"], ["two"]]
    curves = list(contents._each("Curves", learning.curves, parts))
    assert [s.title for s in curves] == ["Curves: pets train val"] * 2
    assert [[b.name for b in s.blocks] for s in curves] == [["learning_curves_1"], []]


def test_cost_is_in_the_units_of_its_header(directories):
    costs = contents._cost(group(*directories))
    for column, text in (
        ("million parameters", "0.12"),
        ("GFLOPs an image", "2.000"),
        ("PFLOPs of training", "0.00144"),  # 3 x 2 GFLOPs x 30 steps x 8 images
        ("hours", "0.010"),
        ("devices", "2 x cpu"),
        ("images/s", document.NONE),
    ):
        assert shown(costs, column)["better"].text == text
    assert shown(costs, "GFLOPs an image")["old"].text == document.NONE


def test_the_gap_is_between_an_evaluation_and_the_log_line_before(tmp_path):
    rows = [
        {"epoch": 4, "eval/class/top1": 0.5},  # nothing to compare with yet
        {"epoch": 5, "train/top1": 0.6, "train/loss_ce": 1.0},
        {"epoch": 8, "eval/class/top1": 0.4, "eval/class/loss": 1.5},
        {"epoch": 10, "train/top1": 0.9, "train/loss_ce": 0.5},
        {"epoch": 10, "eval/class/top1": 0.5, "eval/class/loss": float("nan")},
    ]
    run = runs.Run(tmp_path, "a", {}, rows, None)
    at, gaps = learning.gap(run, "top1")
    assert at == [8, 10]
    assert gaps == pytest.approx([0.2, 0.4])
    assert learning.gap(run, "loss") == ([8], [0.5])


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.75], (0, 0.825)),
        ([-0.2], (-0.22, 0)),
        ([1.0, 0.99999], (0, 1.1)),  # two evaluations that rounding tells apart
        ([0.0], (0, 1)),
        ([], (0, 1)),
        ([0.5, 0.6], (0.495, 0.605)),  # far enough apart: their own range
    ],
)
def test_a_single_evaluation_is_drawn_against_zero(values, limits):
    axes = Figure().subplots()
    lines = [figures.Line(0, range(len(values)), values, dashed=True)]
    figures._plot(axes, lines[0])
    figures._limit(axes, lines)
    assert axes.get_ylim() == pytest.approx(limits)
    # A dashed line has no markers, but a point alone would not be seen without.
    assert (axes.lines[0].get_marker() == "o") == (len(values) == 1)


def test_config_differences_leave_out_seed_and_unset_fields(tmp_path):
    each = [
        {"added": None, "schedule": {"name": "cosine"}},
        {"ema": {"decay": 0.9}},
        {},
    ]
    made = [
        make(tmp_path / name, right(8, 4), seed=seed, config=config)
        for seed, (name, config) in enumerate(zip("abc", each, strict=True))
    ]
    groups = group(*made)
    assert [[run.name for run in g.runs] for g in groups] == [["a", "c"], ["b"]]
    assert runs.config_differences(groups) == {"ema.decay": [None, 0.9]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["deit-seed0", "deit-seed1"], "deit"),
        (["deit_s3", "deit_s12"], "deit"),
        (["resnet50-1", "resnet50-2"], "resnet50"),
        (["a/0", "a/1"], "a"),
        (["classes3", "classes4"], "classes3"),
        (["first", "second"], "first"),
        (["deit-7"], "deit-7"),
    ],
)
def test_a_group_is_named_after_what_its_runs_share(names, expected):
    members = [runs.Run(Path(n), n, {"seed": i}, [], None) for i, n in enumerate(names)]
    [one] = runs.group(members)
    assert one.name == expected


def test_runs_of_one_name_keep_their_paths(tmp_path):
    a, b = (make(tmp_path / name / "run", right(8, 4)) for name in "ab")
    assert [run.name for run in runs.read([a, b, a])] == [str(a), str(b)]


@pytest.mark.parametrize("classes", [2, 15, 16, 100])
def test_a_confusion_is_an_image_for_tensorboard(classes):
    matrix = np.eye(classes, dtype=int).tolist()
    names = [f"$class_{c}" for c in range(classes)]
    drawn = confusion.image(matrix, names, title="eval/class/confusion")
    assert drawn.dtype == np.uint8
    assert drawn.shape == (500, 500, 3)
    assert (drawn == 255).mean() > 0.2  # the page around
    assert (drawn < 128).mean() > 0.001  # the diagonal and the letters


@pytest.mark.filterwarnings("error:Glyph")
def test_names_that_the_font_lacks_are_drawn_without_warnings():
    names, matrix = ["猫", "🐶 dog", "$x_1"], np.eye(3)
    confusion.image(matrix, names, title="eval/class/confusion")
    figures.confusions([("ラン 🐶", matrix)], names)
    assert readable("猫", 3) == "class 3"
    assert readable("ラン", 0, kind="run") == "run 0"
    assert readable("🐶 dog", 1) == "? dog"


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_is_alone_and_escapes_what_it_shows(page):
    text = page.read_text()
    tags = Tags(text).found
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in tags)
    images = [attrs["src"] for tag, attrs in tags if tag == "img"]
    assert len(images) >= 6
    assert all(src.startswith("data:image/png;base64,") for src in images)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Best.</strong> By top-1 better is best" in text
    assert "Without predictions.npz: old." in text
    assert ">Confidence: cars $1$ ? ?</h2>" in text
    targets = {attrs["id"] for tag, attrs in tags if tag == "h2"}
    assert {attrs["href"][1:] for tag, attrs in tags if tag == "a"} == targets


def test_markdown_has_its_images_and_no_markup_of_others(page):
    text = page.with_name("report.md").read_text()
    files = re.findall(r"^!\[.*\]\((\w+\.png)\)$", text, flags=re.MULTILINE)
    assert len(files) == len(set(files)) >= 6
    for name in files:
        with Image.open(page.with_name(name)) as picture:
            assert min(picture.size) > 200
            assert np.count_nonzero(picture.convert("L").histogram()) > 20
    assert "<script" not in text
    assert r"$x\_1\$ a\|b" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)


def test_a_report_is_made_anew_in_its_place(directories, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "sections", lambda groups, **_: [])
    for title in ("first", "a < b"):
        made = report(directories[:1], tmp_path, title=title)
    assert made == tmp_path / "report.html"
    assert "a &lt; b</h1>" in made.read_text()
    with pytest.raises(InputError, match=r"report\.html cannot be written.* another"):
        report(directories[:1], made)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no run directory"),
        ("config.json", "{", "config.json is damaged"),
        ("summary.json", "[1]", "summary.json is damaged: it is no object"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, file, content, message):
    good, bad = (make(tmp_path / name, right(8, 4)) for name in ("good", "bad"))
    if content is None:
        (bad / file).unlink()
    else:
        (bad / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        report([good, bad], tmp_path / "out")
    assert str(bad) in str(caught.value)
    assert "good" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_scores_of_an_unfinished_run_are_its_newest(tmp_path):
    rows = [
        {"step": 1, "eval/class/top1": 0.25, "eval/token_cosine": 1, "train/loss": 1},
        {"step": 2, "eval/class/top1": 0.5, "eval_ema/class/top1": 0.75},
    ]
    run = runs.Run(tmp_path, "a", {}, rows, None)
    assert run.heads() == {"class": {"top1": 0.5}}
    assert run.heads("eval_ema") == {"class": {"top1": 0.75}}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_every_image_and_complains_of_nothing(page, tmp_path):
    """A script of the test's own writes into the page what the browser made of it."""
    probe = """<script>addEventListener("load", () => {
        const sizes = [...document.images].map(i => i.complete && i.naturalWidth);
        const wide = document.documentElement.scrollWidth - innerWidth;
        document.title = JSON.stringify({sizes, wide});
    })</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", probe + "</body>"))
    options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [
            CHROMIUM,
            *options.split(),
            profile,
            "--window-size=1200,900",
            probed.as_uri(),
        ],
        text=True,
        capture_output=True,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.search("<title>(.*)</title>", done.stdout)[1])
    assert len(found["sizes"]) >= 6
    assert min(found["sizes"]) > 200
    assert found["wide"] <= 0  # nothing hangs over the edge
