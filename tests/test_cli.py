import pytest

from semples_plugin.cli import main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    text = capsys.readouterr().out
    assert status.value.code == 0 and "demo" in text and "doctor" in text and "no download" in text
