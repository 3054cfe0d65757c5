"""`python -m simpo score` on files made here: figures, missing judgements, and mistakes that are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo.__main__ import main

quick = pytest.mark.quick
Score = Callable[..., Any]

ANNOTATIONS = """judge,model,index,len_baseline,len_model,preference
j,x,0,100,150,2
j,x,1,100,90,1
j,x,2,100,100,1.5
j,x,3,100,120,
j,x,4,100,80,$ERROR$
j,y,0,10,10,1.25
j,y,1,10,11,-1
j,y,2,10,12,1.75
"""
BATTLES = """question_id,model_a,model_b,winner,extra
1,base,x,model_b,e
1,base,x,model_b,e
1,base,x,model_b,e
2,base,x,model_a,e
3,base,x,tie,e
4,base,x,A>>A,e
5,base,x,,e
1,base,y,tie (bothbad),e
"""
RATINGS = [
    {"question_id": 1, "model": "x", "turn": 1, "score": 8, "judge": ["g", "single-v1"], "category": "math"},
    {"question_id": 1, "model": "x", "turn": 2, "score": -1, "judge": ["g", "single-v1-multi-turn"]},
    {"question_id": 2, "model": "x", "turn": 1, "judgment": "Rating: [[6]]"},
    {"question_id": 2, "model": "x", "turn": 2, "judgment": "Rating: 6"},
    {"question_id": 2, "model": "x", "turn": 2, "score": "4"},
]


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Score:
    """Write files, run the command with their paths in place of {name}, give the JSON, or the error's text."""

    def run(command: str, **files: str) -> Any:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        words = [str(tmp_path / word[1:-1]) if word[:1] == "{" else word for word in command.split()]
        code = main(["score", *words])
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 else " ".join(err.split())

    return run


def test_alpaca_counts_failures_and_ignores_line_order(score: Score) -> None:
    difficulty = "index,instruction_difficulty\n" + "".join(f"{i},{i / 10}\n" for i in range(5))
    command = "alpaca --annotations {a} --difficulty {d} --strength 10 --json"
    found = score(command, a=ANNOTATIONS, d=difficulty)
    x, y = found["x"], found["y"]
    assert (x["win_rate"], x["n"], x["missing"], x["wins"], x["draws"], x["losses"]) == (50.0, 3, 2, 1, 1, 1)
    assert (y["win_rate"], y["n"], y["missing"]) == (50.0, 2, 1)
    assert x["lc_strengths"] == [10.0] and 0 < x["lc_win_rate"] < 100
    header, *lines = ANNOTATIONS.splitlines()
    assert score(command, a="\n".join([header, *lines[4::-1], *lines[5:]]), d=difficulty) == found


@quick
def test_without_lengths_there_is_no_length_control(score: Score) -> None:
    found = score("alpaca --annotations {a} --json", a="model,preference\nx,2\nx,1.5\n")
    assert found["x"]["win_rate"] == 75.0 and found["x"]["lc_win_rate"] is None


def test_regularisers_are_absent_unless_given(score: Score) -> None:
    gamed = "model,index,std_delta_len,instruction_difficulty,preference\nv,0,-1,0,0.9\nv,1,1,0,0.1\nc,0,2,0,0.1\n"
    bare = score("alpaca --annotations {a} --strength 10 --json", a=ANNOTATIONS)
    with_rows = score("alpaca --annotations {a} --regularisers {r} --strength 10 --json", a=ANNOTATIONS, r=gamed)
    assert with_rows["x"]["win_rate"] == bare["x"]["win_rate"]
    assert with_rows["x"]["lc_win_rate"] != bare["x"]["lc_win_rate"]


@quick
def test_arena_weighs_and_counts(score: Score) -> None:
    found = score("arena --battles {b} --json", b=BATTLES)
    assert list(found) == ["x", "base", "y"] or list(found) == ["x", "y", "base"]
    assert found["x"]["score"] == pytest.approx(70.0, abs=1e-3)  # 3 wins, 1 loss, 1 tie
    assert (found["x"]["n"], found["x"]["missing"], found["base"]["missing"]) == (5, 2, 2)
    assert found["y"]["score"] == pytest.approx(50.0) and found["base"]["score"] == 50.0
    assert found["x"]["low"] < 70 < found["x"]["high"]
    assert score("arena --battles {b} --baseline x --rounds 5 --json", b=BATTLES)["base"]["score"] == pytest.approx(
        30.0, abs=1e-3
    )


@quick
def test_arena_reads_a_judges_own_rows(score: Score) -> None:
    rows = [
        {"question_id": "1", "model": "x", "games": [{"score": "B>>A"}, {"judgment": "so [[A>B]]"}]},
        {"question_id": "2", "model": "x", "games": [{"score": "A>>A"}, {"judgment": "no label", "score": None}]},
    ]
    text = "\n".join(map(json.dumps, rows))
    found = score("arena --battles {b} --baseline base --json", b=text)
    assert (found["x"]["n"], found["x"]["missing"]) == (4, 2) and found["x"]["score"] > 99.9
    assert "give --baseline" in score("arena --battles {b}", b=text)


@quick
def test_arena_controls_style(score: Score) -> None:
    style = "model,question_id,token_len,header_count,list_count,bold_count\n" + "".join(
        f"{model},{question},{length},0,0,0\n"
        for model, length in (("base", 100), ("x", 300), ("y", 100))
        for question in range(1, 6)
    )
    found = score("arena --battles {b} --style {s} --control length --rounds 20 --json", b=BATTLES, s=style)
    assert found["x"]["score"] == pytest.approx(70.0, abs=1e-3) and found["x"]["style_score"] < 70
    assert "give --style too" in score("arena --battles {b} --control length", b=BATTLES)
    assert "no style counts of x on question 1" in score(
        "arena --battles {b} --style {s}", b=BATTLES, s=style.replace("x,1,", "z,1,")
    )


@quick
def test_mt_bench_averages_and_counts(score: Score) -> None:
    found = score("mt-bench --judgments {j} --json", j="\n".join(map(json.dumps, RATINGS)))["x"]
    assert (found["first_turn"], found["second_turn"], found["average"]) == (7.0, 4.0, 6.0)
    assert (found["failed"], found["n"], found["categories"]) == (2, 3, {"math": 8.0})
    by_question = score(
        *["mt-bench --judgments {j} --questions {q} --json"],
        j=json.dumps(RATINGS),
        q="question_id,category\n2,stem\n",
    )["x"]
    assert by_question["categories"] == {"math": 8.0, "stem": 5.0}


@quick
def test_ratings_of_two_judges_do_not_average(score: Score) -> None:
    rows = "model,turn,score,judge\nx,1,8,g\nx,1,2,h\n"
    assert "come from 2 judges (g, h)" in score("mt-bench --judgments {j}", j=rows)
    assert score("mt-bench --judgments {j} --judge h --json", j=rows)["x"]["average"] == 2.0
    assert "no row was judged by 'k'" in score("mt-bench --judgments {j} --judge k", j=rows)


@quick
def test_the_table_shows_whole_names_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a-model-with-quite-a-long-name-that-must-not-be-cut-" + "x" * 40
    (tmp_path / "b.csv").write_text(BATTLES.replace(",x,", f",{name},"))
    assert main(["score", "arena", "--battles", str(tmp_path / "b.csv")]) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["model", "score", "low", "high", "n", "missing"]
    assert any(row[0] == name and row[1] == "70.00" and row[-1] == "2" for row in rows)


@quick
@pytest.mark.parametrize(
    ("command", "text", "reason"),
    [
        ("alpaca --annotations {f}", "", "the file is empty"),
        ("alpaca --annotations {f}", "model,index\nx,0\n", "f: there is no column preference (there are: model,"),
        ("alpaca --annotations {f}", "model,preference\nx,0.3\n", "f, line 2: a preference of 0.3 is not in 1..2"),
        ("alpaca --annotations {f}", "model,preference\nx,\n", "all 1 judgements of x failed"),
        (
            "alpaca --annotations {f}",
            "model,index,preference\nx,0,1\nx,0,2\n",
            "f, line 3: x was judged on prompt 0 before, on line 2",
        ),
        (
            "alpaca --annotations {f}",
            "model,preference,len_baseline,len_model\nx,1,1,\nx,1,1,1\n",
            "f, line 2: len_model must be a finite number",
        ),
        (
            "alpaca --annotations {f} --difficulty {f}",
            "model,index,preference,instruction_difficulty\nx,0,1,\n",
            "f, line 2: instruction_difficulty must be a finite number",
        ),
        (
            "alpaca --annotations {f} --regularisers {f}",
            "model,preference,std_delta_len,instruction_difficulty\nx,1.5,0,0\n",
            "f, line 2: a regulariser's preference of 1.5 is not in 0..1",
        ),
        ("arena --battles {f}", "model_a,winner\nx,tie\n", "there is no column model_b"),
        ("arena --battles {f}", "model_a,model_b,winner\nx,x,tie\n", "f, line 2: x is on both sides"),
        ("arena --battles {f}", "model_a,model_b,winner\nx,y,A>B\n", "none of 1 rows has a valid verdict"),
        ("arena --battles {f}", "model_a,model_b,winner\nx,y,tie\nz,v,tie\n", "name the baseline"),
        (
            "arena --battles {f}",
            "model_a,model_b,winner\nb,x,tie\nb,y,\n",
            "all verdicts on y are invalid",
        ),
        ("arena --battles {f} --rounds 0", "model_a,model_b,winner\nx,y,tie\n", "at least one bootstrap round"),
        ("mt-bench --judgments {f}", "model,turn,score\nx,3,5\n", "f, line 2: turn must be 1 or 2, not '3'"),
        ("mt-bench --judgments {f}", "model,turn\nx,1\n", "there is no column score"),
        ("mt-bench --judgments {f}", '{"model": "x", "turn": 1, "score"\n', "f, line 1: this is not valid JSON"),
    ],
)
def test_mistakes_name_file_line_and_remedy(score: Score, command: str, text: str, reason: str) -> None:
    assert reason in score(command, f=text)


@quick
@pytest.mark.parametrize("benchmark", ["alpaca", "arena", "mt-bench"])
def test_help_teaches_the_columns(benchmark: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", benchmark, "--help"])
    assert "Per model:" in capsys.readouterr().out
