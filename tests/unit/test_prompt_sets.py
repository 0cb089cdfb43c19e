"""Prompt sets: tables of prompts and seeds, in the formats that programs write."""

import pytest

torch = pytest.importorskip("torch")

from eraseanything_core import files
from eraseanything_core.evaluation import prompt_sets


def test_prompt_sets_in_the_formats_around():
    ours = "prompt,seed,guidance,label\na cat,3,4.5,cat\n"
    assert prompt_sets.read_table(ours).rows == [prompt_sets.PromptRow("a cat", 3, 4.5, "cat")]
    i2p = '\ufeff,prompt,categories,sd_seed,sd_guidance_scale\n0,"a, b",shocking,77,7\n1,c,hate,78,8\n'
    assert prompt_sets.read_table(i2p).rows == [
        prompt_sets.PromptRow("a, b", 77, 7.0),
        prompt_sets.PromptRow("c", 78, 8.0),
    ]
    esd = "case_number,prompt,evaluation_seed\n5,a dog,9\n"
    assert prompt_sets.read_table(esd, guidance=2.0).rows == [prompt_sets.PromptRow("a dog", 9, 2.0)]
    assert prompt_sets.read_table("Prompt\nx\ny\n").rows[1].seed == 1
    rows = prompt_sets.read_table(i2p).rows
    assert prompt_sets.read_table(prompt_sets.write_table(rows)).rows == rows


@pytest.mark.parametrize(
    "text, message",
    [
        ("text,seed\na,1\n", "no column `prompt`; its columns are: text, seed"),
        ("prompt,seed\n", "no rows"),
        ("prompt,seed\n,1\n", "row 1 of the prompt set was left out: it has no prompt"),
        ("prompt,seed\na,x\n", "row 1 of the prompt set was left out: its seed 'x' is no number"),
        ("", "no column `prompt`"),
    ],
)
def test_a_prompt_set_that_is_wrong_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        prompt_sets.read_table(text)


I2P = "prompt,sd_seed,sd_guidance_scale\na cat,2097,7\n,2098,7\na dog,2099,7\n"


def test_an_empty_prompt_costs_its_row_and_a_note():
    """Both public copies of I2P's table have one."""
    table = prompt_sets.read_table(I2P)
    assert [row.prompt for row in table.rows] == ["a cat", "a dog"]
    assert table.notes == ["row 2 of the prompt set was left out: it has no prompt"]
    assert table.summary() == f"2 prompts\n{table.notes[0]}"


@pytest.mark.parametrize("first, count, prompts, notes", [
    (0, 1, ["a cat"], 0), (2, 0, ["a dog"], 0), (1, 2, ["a dog"], 1), (0, 2, ["a cat"], 1),
])  # fmt: skip
def test_first_and_count_are_of_the_files_rows(first, count, prompts, notes):
    table = prompt_sets.read_table(I2P, first=first, count=count)
    assert ([row.prompt for row in table.rows], len(table.notes)) == (prompts, notes)


def test_where_no_row_is_left_the_reason_is_said():
    with pytest.raises(ValueError, match="no row that can be used: row 2 of the prompt set was left out: it has no"):
        prompt_sets.read_table(I2P, first=1, count=1)
    with pytest.raises(ValueError, match="has 3 rows and none from 3 on: lower `first`"):
        prompt_sets.read_table(I2P, first=3)


UMLAUT = "prompt,seed,guidance\nein Mädchen – „Porträt“,5,2.5\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_tables_in_the_encodings_of_excel_and_powershell(encoding, line_end):
    data = UMLAUT.replace("\n", line_end).encode(encoding)
    rows = prompt_sets.read_table(files.decode_text(data, "x.csv")).rows
    assert rows == [prompt_sets.PromptRow("ein Mädchen – „Porträt“", 5, 2.5)]


@pytest.mark.parametrize(
    "text",
    [
        "prompt;seed;guidance\na cat, sleeping;7;2,5\n",  # Excel where the comma is the decimal sign
        "sep=;\nprompt;seed;guidance\na cat, sleeping;7;2.5\n",
        "prompt\tseed\tguidance\na cat, sleeping\t7\t2.5\n",
        '"prompt","seed","guidance"\n"a cat, sleeping","7.0","2.5"\n',
        "prompt|seed|guidance\na cat, sleeping|7|2.5\n",
        '"sep=;"\n"prompt";"seed";"guidance"\na cat, sleeping;7;2.5\n',
        '\n\n\u200bprompt,seed\xa0,guidance\n"a cat, sleeping" ,7,2.5,,\n',
        'Unnamed: 0,Prompt ,seed,guidance\n0,"a cat, sleeping",7.0,2.5\n,,,\n\n',  # pandas, and Excel's blank last row
    ],
)
def test_tables_with_other_delimiters(text):
    table = prompt_sets.read_table(text)
    assert table.rows == [prompt_sets.PromptRow("a cat, sleeping", 7, 2.5)] and not table.notes


def test_a_line_break_in_quotation_marks_is_a_blank():
    assert prompt_sets.read_table('prompt,seed\n"a cat\r\non a mat",1\n').rows[0].prompt == "a cat on a mat"


def test_a_plain_list_of_prompts_may_hold_commas():
    assert prompt_sets.read_table("prompt\na cat, a dog, 3 birds\n").rows[0].prompt == "a cat, a dog, 3 birds"


def test_missing_numbers_are_the_defaults():
    rows = prompt_sets.read_table("prompt,seed,guidance\na,nan,NaN\nb,,\n", guidance=2.0).rows
    assert [(row.seed, row.guidance) for row in rows] == [(0, 2.0), (1, 2.0)]


@pytest.mark.parametrize(
    "cells, message",
    [
        ("a,1.5,", "its seed '1.5' is no whole number"),
        ("a,-1,", "its seed '-1' is no whole number"),
        ("a,12345678901234567890123,", "is no whole number from 0 to 2^64 - 1"),
        ("a,1e999999999,", "is no whole number"),
        ("a,1,inf", "its guidance 'inf' is no number from 0"),
        ("a,1,-2", "its guidance '-2' is no number from 0"),
        ("a,1,warm", "its guidance 'warm' is no number"),
        ("a, b,1,2", "it has 4 values for 3 columns: put a prompt that holds ',' into quotation marks"),
    ],
)
def test_a_bad_value_costs_its_row(cells, message):
    table = prompt_sets.read_table(f"prompt,seed,guidance\n{cells}\na cat,18446744073709551615,0\n")
    assert table.rows == [prompt_sets.PromptRow("a cat", 2**64 - 1, 0.0)]
    assert len(table.notes) == 1 and message in table.notes[0]


@pytest.mark.parametrize("missing", ["", "nan", "None", "NULL", "N/A", "#N/A", "<NA>"])
def test_what_programs_write_for_no_number(missing):
    rows = prompt_sets.read_table(f"prompt,seed,guidance\na,{missing},{missing}\n", guidance=2.0).rows
    assert rows == [prompt_sets.PromptRow("a", 0, 2.0)]


@pytest.mark.parametrize(
    "bad, after",
    [
        ('"a dog,1\na tree,2', 1),  # nothing ends it
        ('"a dog,1\n"a tree",2', 1),  # it ends where the next one begins
        (r'"a \"big\" dog",1', 0),
    ],
)
def test_quotation_marks_that_do_not_match_make_no_prompt(bad, after):
    table = prompt_sets.read_table(f"prompt,seed\na cat,7\n{bad}")
    assert table.rows == [prompt_sets.PromptRow("a cat", 7, 3.5)]
    lines = f", nor those of the {after} lines after it" if after else ""
    assert table.notes == [
        f"row 2 of the prompt set was left out: its quotation marks do not match{lines}: double those inside a prompt"
    ]


def test_a_huge_cell_costs_its_row():
    table = prompt_sets.read_table("prompt\n" + "x" * 200_000 + "\na cat\n")
    assert [row.prompt for row in table.rows] == ["a cat"] and len(table.notes) == 1


def test_zero_bytes_and_workbooks():
    assert files.decode_text(b"prompt\na\0 cat\n\0\0", "x.csv") == "prompt\na cat\n"
    with pytest.raises(ValueError, match="^x.xlsx is a workbook or a zip file: save it as plain text"):
        files.decode_text(b"PK\x03\x04\0", "x.xlsx")


def test_a_column_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="has the column 'seed' twice: rename one of them"):
        prompt_sets.read_table("prompt,seed,Seed\na,1,2\n")


def test_reading_a_long_table_can_be_stopped():
    class Stop(Exception):
        pass

    calls = []

    def progress():
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        prompt_sets.read_table("prompt\n" + "a cat\n" * 5000, progress=progress)
