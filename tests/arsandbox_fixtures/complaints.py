"""What is asked of an error message."""

from __future__ import annotations

from arsandbox_fixtures.command_line import Done


def check(done: Done, code: int, *words: str, fix: str | None = "") -> None:
    """One line that says what is wrong with all of `words`, and a fix that holds `fix` (None: none asked)."""
    assert done.code == code, done
    lines = done.err.strip().splitlines()
    said = [line for line in lines if line.startswith("arsandbox: ")]
    assert len(said) == 1, done
    for word in words:
        assert word in said[0], (word, done)
    assert len(said[0]) < 500, done
    if fix is not None:
        assert lines[-1].startswith("  fix: "), done
        assert fix in lines[-1], done
        assert len(lines) == 2, done
