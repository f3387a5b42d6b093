from flatminima.cli.screen import progress_bars


def test_words_stand_beside_the_numbers(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bars() as progress:
        progress("reading", 1, 3)
        progress("training", 1, 3, "trace 12.3 ± 0.4")
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "1/3" in shown
    assert "trace 12.3 ± 0.4" in shown


def test_without_a_terminal_nothing_is_shown(capsys):
    with progress_bars() as progress:
        progress("training", 1, 3, "trace 12.3 ± 0.4")
    assert capsys.readouterr().err == ""
