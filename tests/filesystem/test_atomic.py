"""Files replaced whole: what is at a name is the old contents or the new, whatever happens in between."""

import pytest

from dreamjax.filesystem import atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "config.json"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError), atomic.replaced(path) as temporary:
        with open(temporary, "w") as file:
            file.write("half of the ne")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_write_text_keeps_line_ends_and_other_scripts(tmp_path):
    atomic.write_text(tmp_path / "a", "é\r\n山羊\n")
    assert (tmp_path / "a").read_bytes() == "é\r\n山羊\n".encode()


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    with atomic.folder(tmp_path / "index") as building:
        (tmp_path / building / "a").write_text("1")
        assert not (tmp_path / "index").exists()
    assert (tmp_path / "index" / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_of_two_that_build_one_folder_the_first_stays(tmp_path):
    with atomic.folder(tmp_path / "index") as second:
        with atomic.folder(tmp_path / "index") as first:
            (tmp_path / first / "a").write_text("first")
        (tmp_path / second / "a").write_text("second")
    assert (tmp_path / "index" / "a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1
