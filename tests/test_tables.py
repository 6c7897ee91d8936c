"""The tables of docs/results.md are those of the summaries beside them."""

import re

import pytest

from experiments import tables

PAGES = sorted(page for pattern in tables.PAGES for page in tables.DOCS.glob(pattern))

INTERVAL = re.compile(r"\((-?\d+\.\d+) to (-?\d+\.\d+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_figures_of_its_runs(page):
    """Otherwise: python -m experiments.tables"""
    text = page.read_text()
    assert tables.MARK.search(text)
    anew = tables.rewrite(text)
    assert INTERVAL.sub("()", anew) == INTERVAL.sub("()", text)
    # Other versions of NumPy round the ends of an interval to another last digit.
    ends = (sum(INTERVAL.findall(page), ()) for page in (anew, text))
    for found, written in zip(*ends, strict=True):
        last = 10.0 ** -len(written.partition(".")[2])
        assert abs(float(found) - float(written)) < 1.5 * last, (found, written)


def test_every_summary_of_the_study_is_in_a_table():
    text = "".join(page.read_text() for page in PAGES)
    for name in ("digits", "teacher-views", *tables.scales()):
        assert f"<!-- runs: {name} -->" in text
    overview = (tables.DOCS / "results.md").read_text()
    for name in tables.scales():
        for g in tables.groups(name):
            assert f"| {name} | {g.name} | " in overview


def test_a_figure_that_changes_is_written_anew():
    page = (tables.DOCS / "results.md").read_text()
    [line] = [line for line in page.splitlines() if "| study-micro | vit |" in line]
    assert "61.57 ± 0.89" in line
    changed = page.replace("61.57", "99.99")
    assert tables.rewrite(changed) == page
