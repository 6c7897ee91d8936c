"""The report of made-up runs: what it compares, says and escapes, and how it looks."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
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
from deit_jax.training import metrics

NASTY = "<script>alert(1)</script>"
CLASSES = ["cat", NASTY, "$x_1$ a|b", "_owl*"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def evaluation_of(skill: float, seed: int):
    rng = np.random.default_rng(seed)
    labels = np.arange(80) % len(CLASSES)
    logits = rng.normal(size=(80, len(CLASSES)))
    logits += skill * np.eye(len(CLASSES))[labels]
    tables = metrics.tables(logits, labels)
    return metrics.classification(logits, labels) | metrics.averages(tables), tables


def make_run(
    directory: Path, *, skill=1.0, seed=0, finished=True, old=False, **config
) -> Path:
    """A run directory as training leaves it, of three epochs of ten steps."""
    directory.mkdir(parents=True)
    config = {
        "seed": seed,
        "augment": {"seed": 5, "recipe": "none"},
        "dataset": {"name": "pets", "train_split": "train", "eval_split": "val"},
        "model": {"variant": "vit_nano_patch8_32"},
    } | config
    (directory / "config.json").write_text(json.dumps(config))
    rows = []
    for epoch in range(1, 4 if finished else 3):
        scores, tables = evaluation_of(skill * epoch / 3, seed)
        at = {"step": 10 * epoch} | ({} if old else {"epoch": float(epoch)})
        rows.append(
            at
            | {
                "train/loss": 2.0 / epoch,
                "train/loss_ce": 1.5 / epoch,
                "train/top1": 0.3 * epoch,
                "train/teacher_agreement": 0.2 * epoch,
            }
        )
        rows.append(at | {f"eval/class/{k}": v for k, v in scores.items()})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(text)
    if finished:
        facts = {
            "class_names": CLASSES,
            "eval_images": 80,
            "steps": 30,
            "epochs": 3.0,
            "batch_size": 8,
            "parameters": 123456,
            "seconds": 36.0,
            "images_per_sec": 1234.5,
            "resumed_at_step": 0,
            "eval": {"class": scores},
            "teacher": {"arch": NASTY, "top1": 0.5, "top1_split": "val"},
            "devices": ["cpu", "cpu"],
            "versions": {"python": "3.11.7", "jax": "0.10.2"},
        }
        if not old:
            facts["flops_per_image"] = 2_000_000_000
            facts["absent_classes"] = []
            facts["tables"] = {"eval": {"class": tables}}
        (directory / "summary.json").write_text(json.dumps(facts))
    return directory


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "base-seed0", seed=0),
        make_run(root / "better", skill=3.0, model={"variant": "vit_tiny_patch4_32"}),
        make_run(root / "base-seed1", seed=1),
        make_run(root / "killed", finished=False, skill=9.0, epochs=7),
        make_run(root / "old", old=True, skill=2.0, batch_size=5),
        make_run(root / f"other {NASTY[:8]}", dataset={"name": "cars $1$"}),
    ]


@pytest.fixture(scope="module")
def page(directories, tmp_path_factory):
    return report(directories, tmp_path_factory.mktemp("report") / "a" / "b")


@pytest.fixture(scope="module")
def sections(directories):
    """By title, without images being drawn twice: these need none."""
    groups = runs.group(runs.read(directories))
    return {
        "Runs": contents._overview(groups),
        "Results": results.scores(groups),
        "Cost": contents._cost(groups),
    }


def texts(blocks):
    return " ".join(block.text for block in blocks if isinstance(block, document.Text))


def table(blocks, number=0):
    return [b for b in blocks if isinstance(b, document.Table)][number]


def shown(table, column):
    """By run, the cell under a title."""
    place = list(table.header).index(column)
    return {
        row[0]: row[place]
        if isinstance(row[place], document.Cell)
        else document.Cell(row[place])
        for row in table.rows
    }


def test_seeds_are_grouped_as_mean_and_deviation(sections):
    cells = shown(table(sections["Results"]), "top-1 %")
    assert list(cells)[:2] == ["base", "better"]
    scores = [100 * evaluation_of(1.0, seed)[0]["top1"] for seed in (0, 1)]
    mean, deviation = np.mean(scores), np.std(scores, ddof=1)
    assert deviation > 0
    assert cells["base"].text == f"{mean:.2f}"
    assert cells["base"].note == f"± {deviation:.2f}"
    each = shown(table(sections["Results"], 1), "top-1 %")
    assert each["base-seed0"].text == f"{scores[0]:.2f}"
    assert "base stands for base-seed0, base-seed1" in texts(sections["Runs"])


@pytest.mark.parametrize("column", ["top-1 %", "NLL"])  # more, and less, is better
def test_the_best_is_bold_among_finished_runs_of_the_same_data(sections, column):
    cells = shown(table(sections["Results"]), column)
    assert [name for name, cell in cells.items() if cell.best] == ["better"]
    base = float(cells["base"].text)
    difference = float(cells["better"].text) - base
    assert float(cells["better"].note) == pytest.approx(difference, abs=1e-9)
    assert (difference > 0) == (column == "top-1 %")
    assert cells[f"other {NASTY[:8]}"].note == ""  # the first, and only, of its data


def test_what_cannot_be_compared_is_said(sections):
    said = texts(sections["Runs"])
    assert "Unfinished: killed." in said
    assert "different data: pets train val; cars $1$ ? ?" in said
    assert "Without tables by class and by confidence in summary.json: old." in said
    labels = [row[0] for row in table(sections["Results"]).rows]
    assert "killed (unfinished, step 20)" in labels


def test_cost_is_in_the_units_of_its_header(sections):
    costs = table(sections["Cost"])
    assert shown(costs, "million parameters")["better"].text == "0.12"
    assert shown(costs, "GFLOPs an image")["better"].text == "2.000"
    assert shown(costs, "GFLOPs an image")["old"].text == document.NONE
    # 3 x 2 GFLOPs x 30 steps x 8 images
    assert shown(costs, "PFLOPs of training")["better"].text == "0.00144"
    assert shown(costs, "hours")["better"].text == "0.010"
    assert shown(costs, "devices")["better"].text == "2 x cpu"


def test_the_gap_is_between_an_evaluation_and_the_log_line_before(tmp_path):
    run = runs.Run(tmp_path, "a", {}, [], None)
    rows = [
        {"step": 4, "eval/class/top1": 0.5},  # nothing to compare with yet
        {"step": 5, "train/top1": 0.6, "train/loss_ce": 1.0},
        {"step": 8, "eval/class/top1": 0.4, "eval/class/loss": 1.5},
        {"step": 10, "train/top1": 0.9, "train/loss_ce": 0.5},
        {"step": 10, "eval/class/top1": 0.5, "eval/class/loss": float("nan")},
    ]
    run.rows.extend(rows)
    at, gaps = learning.gap(run, "top1", x="step")
    assert at == [8, 10]
    assert gaps == pytest.approx([0.2, 0.4])
    assert learning.gap(run, "loss", x="step") == ([8], [0.5])


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.75], (0, 0.825)),
        ([-0.2], (-0.22, 0)),
        ([1.0, 0.99999], (0, 1.1)),  # two evaluations that rounding tells apart
        ([0.0], (0, 1)),
        ([], (0, 1)),
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


def test_curves_keep_their_range():
    axes = Figure().subplots()
    figures._limit(axes, [figures.Line(0, [1, 2], [0.5, 0.6])])
    assert axes.get_autoscaley_on()


def test_config_differences_leave_out_seed_and_unset_fields(tmp_path):
    one = make_run(tmp_path / "one", added=None, schedule={"name": "cosine"})
    two = make_run(tmp_path / "two", seed=3, ema={"decay": 0.9})
    same = make_run(tmp_path / "same", seed=4)
    groups = runs.group(runs.read([one, two, same]))
    assert [[run.name for run in g.runs] for g in groups] == [["one", "same"], ["two"]]
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
    a, b = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", seed=1)
    assert [run.name for run in runs.read([a, b, a])] == [str(a), str(b)]


@pytest.mark.parametrize("classes", [2, 15, 16, 100])
def test_a_confusion_is_a_picture_for_tensorboard(classes):
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
    figures.dots([(0, np.ones(3), None)], names, ["ラン"], x_label="F1")
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
    assert len(images) >= 8
    assert all(src.startswith("data:image/png;base64,") for src in images)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "Best.</strong> By top-1 better is best" in text
    assert "Without predictions.npz: base, better and old." in text
    targets = {attrs["id"] for _, attrs in tags if "id" in attrs}
    assert {attrs["href"][1:] for tag, attrs in tags if tag == "a"} == targets


def test_markdown_has_its_pictures_and_no_markup_of_others(page):
    text = page.with_name("report.md").read_text()
    files = re.findall(r"^!\[.*\]\((\w+\.png)\)$", text, flags=re.MULTILINE)
    assert len(files) == len(set(files)) >= 8
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


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no run directory"),
        ("config.json", "{", "config.json is damaged"),
        ("config.json", '{"dataset": []}', "config.json is damaged: dataset is no ob"),
        ("summary.json", '{"steps": "3"}', "summary.json is damaged: steps is str"),
        ("summary.json", "[1]", "summary.json is damaged: it is no object"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, file, content, message):
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    if content is None:
        (bad / file).unlink()
    else:
        (bad / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        report([good, bad], tmp_path / "out")
    assert str(bad) in str(caught.value)
    assert "good" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_of_an_unfinished_run_may_contradict_each_other(tmp_path):
    directory = make_run(tmp_path / "run", finished=False)
    row = {"step": 1, "epoch": 0.5, "eval": 1, "eval/class": 2, "eval/class/top1": 0.25}
    rows = [row, {"step": 2, "epoch": float("nan")}]
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [run] = runs.read([directory])
    assert [one["step"] for one in run.rows] == [1]
    assert run.scores == {"eval": {"class": {"top1": 0.25}}}


def test_a_report_that_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "sections", lambda groups, **_: [])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Give another"):
        report([make_run(tmp_path / "run")], tmp_path / "file")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_every_picture_and_complains_of_nothing(page, tmp_path):
    """A script of the test's own writes into the page what the browser made of it."""
    probe = """<script>addEventListener("load", () => {
        const sizes = [...document.images].map(i => i.complete && i.naturalWidth);
        const wide = document.documentElement.scrollWidth - innerWidth;
        document.title = JSON.stringify({sizes, wide});
    })</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", probe + "</body>"))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,900",
            "--dump-dom",
            probed.as_uri(),
        ],
        text=True,
        capture_output=True,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.search("<title>(.*)</title>", done.stdout)[1])
    assert len(found["sizes"]) >= 8
    assert min(found["sizes"]) > 200
    assert found["wide"] <= 0  # nothing hangs over the edge
