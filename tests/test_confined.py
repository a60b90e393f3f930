"""A link in a user's folder ends in that folder, or in the cache of the same hub model; else it is refused by name."""

from pathlib import Path

import pytest

from tuneport.confined import check_links, home, leads_outside
from tuneport.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "a.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "model"


def test_links_to_what_lies_in_the_folder_are_fine(folder: Path) -> None:
    (folder / "b.json").symlink_to("a.json")
    (folder / "deep" / "c.json").symlink_to("../b.json")
    (folder / "d.json").symlink_to((folder / "a.json").absolute())
    check_links(folder)
    (folder.parent / "named").symlink_to(folder)
    check_links(folder.parent / "named")  # the folder's own name may be a link: the user gave it


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "../nowhere", "/", "deep/../../secret", "loop"])
def test_a_link_that_leads_out_is_named(folder: Path, target: str) -> None:
    (folder / "loop").symlink_to(target)
    with pytest.raises(UserError, match="loop: is a link to") as e:
        check_links(folder)
    assert repr(target) in str(e.value)


def test_a_link_deep_in_a_folder_is_found(folder: Path) -> None:
    (folder / "deep" / ".hidden").symlink_to("../../secret")
    with pytest.raises(UserError, match=r"deep/\.hidden: is a link to '\.\./\.\./secret', outside of"):
        check_links(folder)


def test_a_link_to_a_link_that_leads_out_is_named(folder: Path) -> None:
    (folder / "deep" / "inner").symlink_to("../../secret")
    (folder / "outer").symlink_to("deep/inner")
    with pytest.raises(UserError, match="outer: is a link to 'deep/inner', outside of"):
        check_links(folder)


def test_a_link_to_a_folder_that_holds_it_is_refused(folder: Path) -> None:
    (folder / "deep" / "again").symlink_to("..")
    with pytest.raises(UserError, match="again: is a link to a folder that it stands in"):
        check_links(folder)


def test_a_hub_cache_s_links_lead_to_the_blobs_of_the_same_model(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--acme--one" / "snapshots" / ("1" * 40)
    for name in ("one", "other"):
        (tmp_path / f"models--acme--{name}" / "blobs").mkdir(parents=True)
        (tmp_path / f"models--acme--{name}" / "blobs" / "abc").write_text("x")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    check_links(snapshot)
    assert home(snapshot) == tmp_path / "models--acme--one"
    (snapshot / "model.safetensors").symlink_to("../../../models--acme--other/blobs/abc")
    with pytest.raises(UserError, match=r"model\.safetensors: is a link to"):
        check_links(snapshot)


def test_a_path_with_dots_leads_outside_where_it_ends_there(folder: Path) -> None:
    assert leads_outside(folder / ".." / "secret", home(folder))
    assert not leads_outside(folder / "deep" / ".." / "a.json", home(folder))
