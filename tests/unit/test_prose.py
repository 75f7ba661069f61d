"""docs/lint_prose.py: what it refuses, what it leaves alone, and that the project's own texts pass."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "docs" / "lint_prose.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lint_prose", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lint_prose"] = module
    spec.loader.exec_module(module)
    return module


lint_prose = _load()
WORDS = lint_prose.RULES["words"]


@pytest.mark.parametrize("word", WORDS, ids=[word["pattern"] for word in WORDS])
def test_each_word_is_refused_and_ordinary_uses_are_not(word: dict) -> None:
    for text in word["bad"]:
        assert [word["say"] in problem.text for problem in lint_prose.check_markdown(text)] == [True], text
        assert lint_prose.check_python(f'"""{text}"""\n'), text
    for text in word["good"]:
        assert lint_prose.check_markdown(text) == [], text


def test_a_page_is_checked_outside_code_and_links() -> None:
    page = (
        "# Told\n\nA [page](told.md) with `told` and <!-- told -->nothing.\n\n"
        "```\ntold\n```\n\n    told\n\n- An item\n\n    that was told.\n\n| a | told |\n| --- | --- |\n"
    )
    assert [problem.line for problem in lint_prose.check_markdown(page)] == [1, 13, 15]


def test_a_line_is_at_most_120_characters_without_its_links() -> None:
    long = "word " * 24
    assert lint_prose.check_markdown(long.strip()) == []
    assert "121 characters" in lint_prose.check_markdown(long + "x")[0].text
    assert lint_prose.check_markdown(f"See [the page](https://example.org/{'x' * 120}).") == []
    assert lint_prose.check_markdown("| " + "word. " * 30 + "|") == []


def test_a_sentence_is_at_most_40_words_over_all_its_lines() -> None:
    fine = "First one.\nWord word\n" + "word word\n" * 18 + "word word. Another."
    assert lint_prose.check_markdown(fine) == []
    broken = fine.replace("Word", "One word")
    assert [(found.line, found.text) for found in lint_prose.check_markdown(broken)] == [
        (2, "41 words; a sentence has at most 40")
    ]


def test_a_row_of_a_layout_is_its_own_sentence() -> None:
    row = "name.json   " + "word " * 17 + "word"
    more = " " * 12 + "word word"
    assert lint_prose.check_python(f'"""Files.\n\n{row}\n{more}\n{row}\n{row}\n"""\n') == []
    long = "\n".join([row, *[more] * 12])
    assert [found.line for found in lint_prose.check_python(f'"""Files.\n\n{row}\n{long}\n"""\n')] == [4]
    prose = ("word " * 15 + "\n") * 3
    assert [found.line for found in lint_prose.check_python(f'"""Text.\n\n{prose}"""\n')] == [3]
    assert [found.line for found in lint_prose.check_python('"""Text.\n\nfile   is told.\n"""\n')] == [3]


def test_a_blank_line_ends_a_sentence_of_a_message() -> None:
    half = "words and more words of it " * 4
    assert lint_prose.check_python(f'PAGE = """{half}\n\n{half}"""\n') == []
    assert "48 words" in lint_prose.check_python(f'PAGE = """{half}\n{half}"""\n')[0].text


def test_a_list_of_names_is_no_sentence_and_a_value_is_no_word() -> None:
    names = ", ".join(["torch"] * 50)
    assert lint_prose.check_markdown(f"| MIT | {names} |") == []
    assert "51 words" in lint_prose.check_markdown(f"| MIT | needs {names} |")[0].text
    assert lint_prose.check_markdown("Set mining.run=beside or ``beside`` here.") == []
    message = 'raise ValueError("mining.run=beside needs Ray for its actors")\n'
    assert lint_prose.check_python(f'Run = Literal["inline", "beside"]\n{message}') == []
    assert lint_prose.check_python(message.replace("=", " ")) != []


def test_python_texts_are_docstrings_comments_and_messages() -> None:
    source = (
        '"""It is told."""\n'
        "told = 1  # the told value\n"
        "# One line of a comment, and it was\n"
        "# told in the next.\n"
        "class Settings:\n"
        "    seed: int = 0\n"
        '    """A seed; told."""\n'
        "def report(name: str) -> None:\n"
        '    """Report.\n\n    Args:\n        name: who is told.\n\n    >>> told\n    """\n'
        '    raise ValueError(f"{name} must be told "\n'
        '        "once and beside it")\n'
        'KEY = "told"\n'
        'PAGE = "<p>this told text is</p>"\n'
    )
    assert [problem.line for problem in lint_prose.check_python(source)] == [1, 2, 4, 7, 12, 16, 17]


def test_comments_of_other_files_are_checked() -> None:
    text = (
        "# A run that was\n# told to stop.\n# fsl-dist train told\nkey: told  # beside it\nname: 'a#told'\n"
        + "# "
        + "x" * 120
    )
    assert [problem.line for problem in lint_prose.check_comments(text)] == [2, 4, 6]


def test_sentences_among_the_values_of_a_yaml_file_are_checked() -> None:
    text = (
        "# The reason is told here.\n"
        "title: told\n"
        "notes:\n"
        '  - "The row was told by the paper"\n'
        "  - {text: The other rows stand at zero}\n"
        "run: |\n"
        "  import told; told.at_once(1)\n"
    )
    assert [problem.line for problem in lint_prose.check_yaml(text)] == [1, 4, 5]


def test_a_page_inside_a_program_is_a_page_and_a_program_is_no_text() -> None:
    page = '"""A page."""\nPAGE = """# Told\n\nAll of it is told here.\n\n```\nthis is told in code only\n```\n"""\n'
    assert [problem.line for problem in lint_prose.check_python(page)] == [2, 4]
    code = 'CODE = """\nfrom told import all of it as told\n"""\n'
    assert lint_prose.check_python(code) == []


def test_the_program_fails_where_a_text_breaks_a_rule(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Mining runs beside training.\n")
    (tmp_path / "code.py").write_text("# Training is quick.\n")
    found = subprocess.run([sys.executable, PROGRAM, tmp_path], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        f"{tmp_path / 'page.md'}:1: 'beside': write next to, concurrently with, compared with"
    ]
    (tmp_path / "page.md").write_text("Mining runs concurrently with training.\n")
    assert subprocess.run([sys.executable, PROGRAM, tmp_path]).returncode == 0
    missing = subprocess.run([sys.executable, PROGRAM, tmp_path / "none"], capture_output=True, text=True)
    assert missing.returncode == 2
    assert "none does not exist" in missing.stderr


def test_the_texts_of_the_project_pass() -> None:
    found = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
