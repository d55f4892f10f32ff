"""`spem report`: published figures, what it writes, what it refuses."""

import re

import pytest
import reports

from spem.models import create_model
from spem.report.figures import figures
from spem.report.published import PUBLISHED, fits
from spem.report.tables import read_contents
from spem.report.writer import render, report


def test_published_figures_stand_beside_the_networks_that_they_are_of(tmp_path):
    kinds = {"model": "resnet164", "data": "cifar100"}
    records = [
        *(reports.record("none", seed, 0.74 + seed / 100, best=0.76, **kinds) for seed in range(2)),
        reports.record("spem", 0, 0.755, label="ours", **kinds),
        reports.record("spem", 0, 0.75, options={"pool": "max"}, label="spem max", **kinds),
        reports.record("se", 0, 0.751, options={"pool": "avg"}, label="se avg", **kinds),
    ]
    table = read_contents(reports.write(tmp_path, records)).published
    rows = [dict(zip(table.header, [c.text for c in cells], strict=True)) for cells in table.rows]
    assert {(row["model"], row["data"]) for row in rows} == {("resnet164", "cifar100")}
    by_source = {(row["gate"], row["source"].partition(",")[0]): row for row in rows}
    spem, none = by_source["spem", "SPEM"], by_source["none", "SPEM"]
    assert (spem["published top-1, %"], none["published top-1, %"]) == ("76.31", "74.30")
    assert (spem["our row"], spem["ours, final epoch, %"]) == ("ours", "75.50")
    assert (none["ours, final epoch, %"], none["our n"]) == ("74.50 ± 0.71", "2")
    assert none["ours, best test epoch, %"] == "76.00 ± 0.00"
    assert "2208.10322" in spem["source"]
    assert spem["what it is"] == "best test epoch"
    assert by_source["se", "LSAS"]["our row"] == "se avg"
    assert by_source["lsas", "LSAS"]["our row"] == "not run"
    assert all(row["our row"] != "spem max" for row in rows)
    assert "kinds differ" in table.notes[0]


def test_networks_of_which_nothing_is_published_have_no_such_table(tmp_path):
    records = [reports.record("none", 0, 0.9, model="resnet8", data="digits")]
    assert read_contents(reports.write(tmp_path, records)).published is None


def test_every_published_figure_has_a_source_and_fits_a_network_that_can_be_built():
    for entry in PUBLISHED:
        assert 60 < float(entry.top1) < 100
        assert entry.kind
        assert entry.source
        run = reports.record(
            entry.gate or "none", 0, 0.9, model=entry.model, data=entry.data, options=entry.options
        )
        assert fits(entry, run["recipe"])
        assert not fits(entry, run["recipe"] | {"mask": [1]})
        config = create_model(entry.model, entry.gate, **entry.options).config
        assert fits(entry, run["recipe"] | {"block": config.block})
        assert fits(entry, run["recipe"] | {"placement": "norm"}) == (entry.gate is None)
    errors = {entry.top1 for entry in PUBLISHED if "imgclsmob" in entry.source}
    assert "79.56" in errors  # 20.44 % error, as METHODS turns it


@pytest.mark.parametrize(("model", "block"), [("resnet20", "bottleneck"), ("resnet164", "basic")])
def test_networks_of_other_blocks_are_not_those_that_were_published(model, block):
    entries = [entry for entry in PUBLISHED if (entry.model, entry.gate) == (model, None)]
    recipes = [reports.record("none", 0, 0.9, model=model, data=e.data)["recipe"] for e in entries]
    for entry, recipe in zip(entries, recipes, strict=True):
        assert fits(entry, recipe)
        assert not fits(entry, recipe | {"block": block})


def test_the_command_writes_a_page_markdown_and_figures(tmp_path, capsys):
    costs = [reports.cost(gate, 300, data="cifar10") for gate in ("none", "se", "eca", "spem")]
    folder = reports.write(tmp_path / "a b", reports.comparison(), costs)
    report(str(folder))
    assert capsys.readouterr().out.split("\n")[:-1] == [
        str(folder / "report.md"),
        str(folder / "report.html"),
    ]
    text = (folder / "report.md").read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert {folder / link for link in links} == set((folder / "figures").iterdir())
    assert len(links) == 8
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report(str(folder))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == written


def test_figures_of_earlier_reports_are_removed_and_nothing_else(tmp_path):
    place = reports.write(tmp_path, reports.comparison()) / "figures"
    report(str(tmp_path))
    own = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    (place / "mine-curves.svg").write_text(own)
    (place / "notes.txt").write_text("mine")
    before = {path.name for path in place.iterdir()}
    reports.write(tmp_path, reports.comparison(groups=["cifar10"]))
    report(str(tmp_path))
    assert {name for name in before if "cifar100" not in name} == {p.name for p in place.iterdir()}
    assert (place / "mine-curves.svg").read_text() == own


def test_the_reader_is_told_how_to_leave_out_the_costs(tmp_path):
    for costs in ([], [reports.cost("none", 300)]):
        reports.write(tmp_path, reports.comparison(), costs)
        report(str(tmp_path))
        assert "--no-costs" in (tmp_path / "report.md").read_text()


def test_page_and_markdown_have_the_same_tables(tmp_path):
    contents = read_contents(reports.write(tmp_path, reports.comparison()))
    text = render(contents, [figures(group) for group in contents.groups], "md")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and "---" not in line
    ]
    tables = [t for group in contents.groups for t in (group.table, group.cost_table)]
    tables.append(contents.published)
    assert lines == [
        cells for t in tables for cells in (t.header, *([c.text for c in row] for row in t.rows))
    ]


def test_what_users_call_things_is_text_in_markdown(tmp_path):
    label = "a|b <script>alert(1)</script> *x* `y` &lt; a[b] $x$ _y_ s_t ~~z~~ \x1b[31m"
    study = {"title": "<b>T</b>\n# not a head", "commands": ["echo ```\n```"]}
    study["question"] = "# Is ![this](https://example.com/a.png) a picture?"
    folder = reports.write(tmp_path, [reports.record("se", 0, 0.9, label=label)], study=study)
    contents = read_contents(folder)
    text = render(contents, [[]], "md")
    assert text.startswith("# \\<b>T\\</b> # not a head\n")
    assert r"a\|b \<script>alert(1)\</script> \*x\* \`y\` &amp;lt; a[b] \$x\$ \_y\_ s_t" in text
    assert r"s_t \~\~z\~\~ \x1b[31m" in text
    assert "\n\\# Is ![this\\](https://example.com/a.png) a picture?\n" in text
    assert "````sh\necho ```\n```\n````" in text


@pytest.mark.parametrize("lines", [None, "", "no record\n"])
def test_an_empty_folder_is_refused_in_one_sentence(tmp_path, lines):
    if lines is None:
        with pytest.raises(FileNotFoundError, match=r"holds no comparison: records.jsonl is miss"):
            report(str(tmp_path))
    else:
        (tmp_path / "records.jsonl").write_text(lines)
        message = r"no run of .* has come to a result($|; records.jsonl is damaged \(line 1: no va)"
        with pytest.raises(ValueError, match=message):
            report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_failures_is_refused_with_the_first(tmp_path):
    reports.write(tmp_path, [reports.failure("spem", 0, "a loss is not finite")])
    with pytest.raises(ValueError, match="come to a result; the first one failed: a loss is not"):
        report(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("study.yaml", "a: [", "is no valid YAML"),
        ("study.yaml", "- 1", "must hold one `key: value` a line"),
        (
            "study.yaml",
            "planned: many",
            r"study\.yaml is none that spem compare writes: planned must be a whole number",
        ),
        ("costs.jsonl", '{"model": "resnet20"}\n', "is damaged: remove it"),
        ("costs.jsonl", "{", "is damaged: remove it"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, name, text, message):
    reports.write(tmp_path, reports.comparison())
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        report(str(tmp_path))


def test_a_summary_that_lacks_something_is_refused(tmp_path):
    record = reports.record("none", 0, 0.9)
    del record["summary"]["macs"]
    reports.write(tmp_path, [record])
    with pytest.raises(ValueError, match=r"is damaged \(line 1: summary lacks macs\)"):
        report(str(tmp_path))
