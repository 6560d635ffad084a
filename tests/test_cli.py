import pytest

from semples_plugin.cli import main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as status:
        main(["--help"])
    text = capsys.readouterr().out
    assert status.value.code == 0 and "demo" in text and "doctor" in text and "no download" in text


def test_doctor_says_what_is_there_and_where_weights_go(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    status = main(["doctor"])
    text = capsys.readouterr().out
    assert status == 0 and "installed torch " in text and "device    cpu" in text
    assert "ViT-B-32-quickgelu/openai" in text
    (tmp_path / "weights.pt").write_bytes(b"")
    main(["doctor", "--pretrained", str(tmp_path / "weights.pt")])
    assert str(tmp_path / "weights.pt") in capsys.readouterr().out
    for wrong, words in (
        (["--pretrained", str(tmp_path / "none.pt")], "there is no file"),
        (["--clip", f"local-dir:{tmp_path}"], "expected a folder with open_clip_config.json"),
        (["--clip", str(tmp_path)], f"is a folder; a model in open_clip's layout is called local-dir:{tmp_path}"),
    ):
        assert main(["doctor", *wrong]) == 1 and words in capsys.readouterr().out
