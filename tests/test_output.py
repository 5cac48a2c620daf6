"""Who hears what: data on stdout, talk on stderr, and nothing but errors when quiet."""

import json
import re
from collections import Counter

import pytest

from edgediff import output as output_module
from edgediff.errors import BadInputError
from edgediff.output import Output


def speak(output):
    output.stage("prune", "done")
    output.say("remark with [brackets]")
    output.table("title", ["", "value"], [["row [trt]", "1"]])
    output.data({"value": 1})


def test_human_gets_tables_on_stdout_and_talk_on_stderr(capsys):
    speak(Output("human"))
    out, err = capsys.readouterr()
    assert "row [trt]" in out and "value" in out and "{" not in out
    assert "prune" in err and "remark with [brackets]" in err


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_table_loses_a_letter_however_narrow_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["row", "baseline", "limit", "this run", "verdict", "where it was"]
    rows = [
        ["step_p50_ms/student/onnxruntime/cpu/batch 16", "12.3", "16.25", "13.5", "ok", "a machine with a long name"],
        ["frechet_distance/student", "1,334", "1,400", "1,412.25", "regressed", "here"],
    ]
    Output("human").table("check", names, rows)
    shown = capsys.readouterr().out.replace("─", "")
    asked = ["check", *names, *(cell for row in rows for cell in row)]
    assert Counter("".join(shown.split())) == Counter("".join(asked).replace(" ", ""))


def test_json_gets_one_document_on_stdout(capsys):
    speak(Output("json"))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"value": 1}
    assert "prune" in err


def test_quiet_says_nothing(capsys):
    speak(Output("quiet"))
    with Output("quiet").progress("work", 3) as progress:
        progress.advance(3)
    assert capsys.readouterr() == ("", "")


def test_json_refuses_what_is_not_json(capsys):
    with pytest.raises(ValueError, match="JSON"):
        Output("json").data({"psnr": float("inf")})


def test_an_error_is_a_sentence_and_a_hint(capsys):
    Output("human").error(BadInputError("ratio [1.5] is out of range", "use [0, 1)"))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: ratio [1.5] is out of range\nhint: use [0, 1)\n")


def test_an_error_is_data_for_machines(capsys):
    Output("json").error(BadInputError("no", "yes"))
    assert json.loads(capsys.readouterr().out) == {"error": "no", "hint": "yes", "exit_code": 2}


def test_progress_without_a_terminal_prints_lines_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(output_module, "PLAIN_INTERVAL", 0.0)
    with Output("human").progress("distill", total=4, done=2) as progress:
        progress.advance(note="loss 1")
    assert "distill: 3/4, 0:00 left  loss 1" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["distill", "features of the data"])
def test_a_long_note_leaves_the_bar_the_count_and_the_time_left_on_a_line_of_80(what, capsys, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    with Output("human").progress(what, total=20_000) as progress:
        progress.advance(5_000, note="loss 0.0123  coarse 0.00456  fine 0.00789  slope 0.987  intercept -0.00123")
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", capsys.readouterr().err)]
    line = [line for line in shown if "loss" in line][-1]
    assert len(line) <= 80
    assert re.fullmatch(rf"{what} [━╺╸]{{10,}} +5000/20000 [-\d]:[-\d]{{2}}:[-\d]{{2}} loss 0\.0123  .*…", line)
