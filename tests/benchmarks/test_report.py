"""Reports and pictures of committed results, files that are whole or not there, the options."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import environment, grid, launches, pictures, records, report, scaling, suite

RESULTS = Path(report.__file__).parent / "results"
CPU = "cpu-amd-epyc-2-cores"
NAMES = ("throughput", "scaling", "ratios")
WRITERS = {
    "-grid": grid.markdown,
    "-many-devices": scaling.report,
    "-launches": launches.markdown,
}


def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_report_of_a_committed_result_is_the_committed_one(path):
    own = [writer for end, writer in WRITERS.items() if path.stem.endswith(end)]
    images = [f"{path.stem}-{name}.png" for name in NAMES]
    images = [name for name in images if (RESULTS / name).exists()]
    written = own[0](load(path.stem)) if own else report.markdown(load(path.stem), images)
    assert written == path.with_suffix(".md").read_text()


def test_a_report_is_written_again(tmp_path, capsys):
    source = tmp_path / "some.json"
    source.write_text((RESULTS / f"{CPU}.json").read_text())
    command.main(["--report", str(source), "--out", str(tmp_path / "new")])
    names = ["some.md", *(f"some-{name}.png" for name in NAMES)]
    assert sorted(os.listdir(tmp_path / "new")) == sorted(names)
    text = (tmp_path / "new" / "some.md").read_text()
    assert text.replace("some-", f"{CPU}-") == (RESULTS / f"{CPU}.md").read_text()
    first = "nll_gradient  65536, 32, 1 diagonal: 8.76 ms; torch.compile 1.2 x; "
    assert capsys.readouterr().out.startswith(first + "torch.distributions 6.8 x\n")


def test_a_run_is_written_and_a_part_never_replaces_the_whole(tmp_path, monkeypatch, capsys):
    found = load(CPU)
    monkeypatch.setattr(suite, "run", lambda selected, **options: found)
    monkeypatch.setattr(pictures, "draw", lambda report: {})
    options = ["--quick", "--only", "sample", "--minutes", "3", "--out", str(tmp_path)]
    command.main(options)
    stem = f"{CPU}-quick-sample-3-minutes"
    assert sorted(os.listdir(tmp_path)) == [f"{stem}.json", f"{stem}.md"]
    assert json.loads((tmp_path / f"{stem}.json").read_text()) == found
    assert f"{stem}.json, {stem}.md" in capsys.readouterr().out


def test_wrong_and_failed_contenders_are_named():
    found = load(CPU)
    own, peer, other = found["measurements"][0], *found["measurements"][4:6]
    peer |= {"status": "wrong", "reason": "error a|b"}
    other |= {"status": "failed", "reason": "RuntimeError: no"}
    own["errors"]["gradient"] = None
    del other["seconds"]
    text = report.markdown(found | {"measurements": [own, peer, other]})
    assert ", **wrong** |" in text
    assert f"| {peer['contender']} | wrong | error a\\|b |" in text
    assert f"| {other['contender']} | failed | RuntimeError: no |" in text
    assert "| not finite | 1e-05 | **no** |" in text
    assert "How the cost grows" not in text
    summary = report.summary({"measurements": [own, peer, other]})
    assert f"failed: {other['contender']}, nll_gradient " in summary


def test_pictures_show_every_contender_and_one_link_a_shape():
    records = load(CPU)["measurements"]
    for panel in pictures.throughput(records, "").axes:
        assert len(panel.lines) >= 8
        assert panel.get_xscale() == panel.get_yscale() == "log"
    (axes,) = pictures.ratios(records, "").axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == len(set(labels)) == 31
    assert labels[0] == "nll gradient: 65536, 32, 1 diagonal"
    pictures.plt.close("all")


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")

    def interrupted(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.replace_file(path, interrupted)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]
    report.replace_file(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


def test_exponent():
    assert records.exponent([1.0, 2.0, 4.0, 8.0], [9.0, 3.0, 12.0, 48.0]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "argument --only: invalid choice: 'nonsense'"),
        (["--out", "file"], "--out file is a file; name a folder."),
        (["--report", "none.json"], "--report none.json cannot be read: "),
        (["--families", "--only", "nll"], "--families, --only exclude each other; choose one."),
        (["--families", "--minutes", "1"], "--families, --minutes exclude each other; choose one."),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert f"python -m benchmarks: error: {message}" in capsys.readouterr().err


def test_names_of_devices():
    cpu = {"platform": "cpu", "model": "ACME Core(TM) 7", "devices": 1, "cores": 2}
    assert environment.slug(cpu) == "cpu-acme-core-tm-7-2-cores"
    assert report.device_title(cpu | {"cores": 1}) == "ACME Core(TM) 7, 1 core"
    gpu = {"platform": "gpu", "model": "ACME G200", "devices": 1, "cores": 2}
    assert environment.slug(gpu) == "gpu-acme-g200"
    assert environment.slug(gpu | {"devices": 4}) == "gpu-acme-g200-x-4"
