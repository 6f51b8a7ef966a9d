"""Where figures go."""

import pytest
import torch

from undivided.commands import CommandError
from undivided.commands.figures import attention_maps

MAPS = [("ab", "cd", torch.eye(2))]


@pytest.mark.parametrize(("given", "written"), [("mm", "mm.png"), ("mm.png", "mm.png"), ("new/m.svg", "new/m.svg")])
def test_the_path_of_a_figure_is_that_of_the_file(tmp_path, given, written):
    path = attention_maps(tmp_path / given, MAPS)
    assert path == tmp_path / written and path.stat().st_size > 1000
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]


def test_a_folder_is_no_figure(tmp_path):
    (tmp_path / "maps").mkdir()
    with pytest.raises(CommandError, match="maps is a folder, a figure needs the name of a file"):
        attention_maps(tmp_path / "maps", MAPS)
    assert [one.name for one in tmp_path.iterdir()] == ["maps"]
