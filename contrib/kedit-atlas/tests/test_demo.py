import sys

import pytest

from kedit_atlas import demo


def test_an_unknown_method_is_one_sentence_before_any_model_is_opened(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--method", "nosuch"])
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kedit: unknown method 'nosuch'")
    assert len(err.splitlines()) == 1
