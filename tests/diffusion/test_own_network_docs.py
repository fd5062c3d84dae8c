"""The blocks of docs/own_network.md run as they stand, in their order, in one folder."""

import re
from pathlib import Path

import pytest

from flashpoint.diffusion import UserError, sample

pytestmark = pytest.mark.usefixtures("few_points")


PAGE = Path(__file__).parents[2] / "docs/own_network.md"


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    said = capsys.readouterr().out
    assert "sliced Wasserstein distance" in said
    assert "| hidden | models |" in said
    assert names["resumed"].step == 200
    assert names["x"].shape == (100, 2)
    # "one with a table of embeddings is refused in one line, unless s_churn=0"
    options = {"method": "edm", "num_steps": 5, "device": "cpu"}
    with pytest.raises(UserError, match=r"model must be a network of .x_t float32.*t float32"):
        sample(names["loaded"], names["schedule"], 3, **options)
    assert sample(names["loaded"], names["schedule"], 3, s_churn=0, **options).x.shape == (3, 2)
