"""Places of models: paths, a cache made by hand, and a hub of our own on this machine. Nothing leaves it."""

import sys

import pytest
from hub_server import COMMIT, OLDER, caching, go_offline, serving, snapshot, use_endpoint

from vqcortex.adapters.family import Spec
from vqcortex.adapters.hub import commit_of, locate, locate_first, pinned
from vqcortex.errors import ConfigError, MissingExtra, ModelError

FILES = {
    "config.json": b"{}",
    "vqvae/config.json": b'{"_class_name": "VQModel"}',
    "vqvae/model.safetensors": b"weights",
    "vqvae/model.fp16.safetensors": b"half",
    "nets/vq.pt": b"one file",
}


def spec(text):
    return Spec.read(f"family:{text}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    with caching(monkeypatch, tmp_path / "cache") as found:
        yield found


@pytest.fixture
def offline(cache, monkeypatch):
    go_offline(monkeypatch)
    return cache


@pytest.fixture
def hub(cache, monkeypatch):
    with serving(monkeypatch, FILES) as asked:
        yield asked


# --- paths


def test_a_path_is_returned_as_it_is(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.pt").write_bytes(b"")
    assert locate(spec(f"{tmp_path}/a"), "*.nothing") == tmp_path / "a"
    assert locate(spec(f"{tmp_path}/a#b")) == tmp_path / "a" / "b"
    assert locate(spec(f"{tmp_path}/a/x.pt")) == tmp_path / "a" / "x.pt"


def test_a_path_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert locate(spec(str(tmp_path))) == tmp_path
    with pytest.raises(MissingExtra, match=r"pip install 'vqcortex\[hub\]'"):
        locate(spec("owner/name"))


def test_a_relative_path_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate(spec("owner/name")).samefile(tmp_path / "owner" / "name")


def test_a_missing_subfolder_is_named_with_what_there_is(tmp_path):
    (tmp_path / "movq").mkdir()
    with pytest.raises(ModelError, match=r"has no folder 'vqvae'; it is: movq; correct what follows the #"):
        locate(spec(f"{tmp_path}#vqvae"))
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"has no folder 'vqvae'; it is: a file, no folder"):
        locate(spec(f"{tmp_path}/x.pt#vqvae"))


@pytest.mark.parametrize("place", ["/no/such/model", "./owner/name", "~/no-such-model-at-all", "name", "", "a//b"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(place):
    with pytest.raises(ModelError, match="does not exist, and a hub id is owner/name"):
        locate(spec(place))


def test_a_path_has_no_revision(tmp_path):
    with pytest.raises(ConfigError, match=r"revision='main' of .* a path has no revisions; leave it out"):
        locate(spec(f"{tmp_path}?revision=main"))


# --- a cache, without a network


def test_a_fetched_repository_needs_no_network(offline):
    there = snapshot(offline, FILES)
    assert locate(spec("owner/name"), "*.json") == there
    assert locate(spec("owner/name#vqvae"), "*.safetensors") == there / "vqvae"
    assert locate(spec("owner/name/nets/vq.pt")) == there / "nets" / "vq.pt"
    assert locate(spec("owner/name/vq.pt#nets")) == there / "nets" / "vq.pt"


def test_a_revision_is_what_it_says(offline):
    now, before = snapshot(offline, FILES), snapshot(offline, FILES, commit=OLDER, ref="v1")
    assert locate(spec("owner/name"), "*.json") == now
    assert locate(spec("owner/name?revision=v1"), "*.json") == before
    assert locate(spec(f"owner/name?revision={OLDER}"), "*.json") == before


def test_the_commit_can_be_found_out_and_pinned(offline, tmp_path):
    there = locate(spec("owner/name"), "*.json") if snapshot(offline, FILES) else None
    assert commit_of(there / "vqvae") == COMMIT
    assert pinned(spec("owner/name?size=8"), there).options == {"size": "8", "revision": COMMIT}
    assert commit_of(tmp_path) is None
    assert pinned(spec(str(tmp_path)), tmp_path).options == {}
    assert pinned(spec(str(there)), there).options == {}  # a path into the cache is a path


def test_the_first_choice_that_is_there_is_taken(offline):
    there = snapshot(offline, FILES)
    choices = (["model.bin"], ["*.safetensors"])
    assert locate_first(spec("owner/name#vqvae"), *choices) == there / "vqvae"
    with pytest.raises(ModelError, match=r"holds nothing like \*\.bin or \*\.ckpt, as far as it was fetched"):
        locate_first(spec("owner/name"), ["*.bin"], ["*.ckpt"])


@pytest.mark.parametrize("place", ["owner/other", "owner/name?revision=v9", "owner/name/nets/absent.pt"])
def test_what_was_never_fetched_is_said_to_be_offline(offline, place):
    snapshot(offline, FILES)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set and .* were never fetched; unset it, or fetch them"):
        locate(spec(place), "*.json")


def test_a_subfolder_that_was_not_fetched_is_named(offline):
    snapshot(offline, FILES)
    with pytest.raises(ModelError, match=r"folder 'movq' of hub repository 'owner/name' holds nothing like \*\.json.*"
                                         r"HF_HUB_OFFLINE is set"):  # fmt: skip
        locate(spec("owner/name#movq"), "*.json")


# --- a hub


def test_only_what_is_wanted_is_fetched_and_kept(hub, monkeypatch):
    there = locate(spec("owner/name#vqvae"), "*.fp16.safetensors")
    assert (there / "model.fp16.safetensors").read_bytes() == b"half"
    assert commit_of(there) == COMMIT
    assert [one.name for one in there.iterdir()] == ["model.fp16.safetensors"]
    assert any("/resolve/" in one for one in hub)
    hub.clear()
    go_offline(monkeypatch)
    assert locate(spec("owner/name#vqvae"), "*.fp16.safetensors") == there
    assert hub == []


def test_one_file_is_fetched_alone(hub):
    assert locate(spec("owner/name/nets/vq.pt"), "*.ignored").read_bytes() == b"one file"
    assert not any("config.json" in one for one in hub)


def test_an_absent_file_is_named(hub):
    with pytest.raises(
        ModelError, match=r"has no file 'nets/absent\.pt' at revision 'main'; correct the path; a folder"
    ):
        locate(spec("owner/name/nets/absent.pt"))


def test_a_repository_without_such_files_is_told_apart_from_none(hub):
    with pytest.raises(ModelError, match=r"holds nothing like \*\.ckpt, at revision 'main'; name the folder that does"):
        locate(spec("owner/name"), "*.ckpt")
    with pytest.raises(ModelError, match=r"is no path on this machine, and the hub has no repository 'owner/other'"):
        locate(spec("owner/other"))
    with pytest.raises(ModelError, match=r"the hub has no repository 'owner/other'"):
        locate(spec("owner/other/x.pt"))


def test_an_absent_revision_is_named(hub):
    with pytest.raises(ModelError, match=r"'owner/name' has no revision 'v9'; give a branch, a tag or a commit"):
        locate(spec("owner/name?revision=v9"))


def test_a_gated_repository_says_where_its_terms_are(hub):
    with pytest.raises(ModelError, match=r"is gated: accept its terms at https://huggingface\.co/owner/gated"):
        locate(spec("owner/gated"))


def test_whatever_else_the_library_says_is_one_line(hub):
    with pytest.raises(ModelError, match=r"'owner/broken'") as caught:
        locate(spec("owner/broken"))
    assert "\n" not in str(caught.value)


def test_without_a_network_the_cache_still_serves(cache, monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # nobody listens there
    there = snapshot(cache, FILES)
    assert locate(spec("owner/name"), "*.json") == there
    with pytest.raises(ModelError, match=r"the hub cannot be reached \(.*check the network, or name a path"):
        locate(spec("owner/other"))


def test_a_name_that_the_hub_does_not_allow_is_refused(cache):
    with pytest.raises(ModelError, match="a hub id is owner/name"):
        locate(spec("owner/na--me"))
