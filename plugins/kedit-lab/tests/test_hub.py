"""Data sets of the hub: what is asked of ``datasets``, and what is said where it fails."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kedit_core import Plugins
from kedit_core.errors import RequestError
from kedit_lab.hub import Address, address_of

DATA = Path(__file__).parent / "data"
ROME = json.loads((DATA / "counterfact_rome.json").read_text())


def read(source):
    return list(Plugins.installed().call_all("read_requests", source=source))


@pytest.fixture
def hub(monkeypatch):
    """Put in place of ``datasets`` one that answers with what it is told to, and notes what it is asked."""
    module, asked = ModuleType("datasets"), []

    def answer(found):
        def load_dataset(path, **options):
            asked.append((path, options))
            if isinstance(found, Exception):
                raise found
            return found

        module.load_dataset = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)
        return asked

    return answer


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("hf://azhx/counterfact", Address(id="azhx/counterfact")),
        ("hf://a/b@c01c413f#test", Address(id="a/b", revision="c01c413f", split="test")),
        ("hf://a/b.c/d/e_1.json", Address(id="a/b.c", file="d/e_1.json")),
        ("hf://a/b@main/d.csv#x", Address(id="a/b", revision="main", file="d.csv", split="x")),
    ],
)
def test_an_address_names_owner_name_revision_file_and_split(place, address):
    assert address_of(place) == address


@pytest.mark.parametrize("place", ["hf://", "hf://a", "hf://a/", "hf://a/b@", "hf://a b/c"])
def test_what_is_no_address_is_told_the_form(place):
    with pytest.raises(RequestError, match=r"no address of a data set; write hf://OWNER/NAME"):
        read(f"counterfact:{place}")


def test_a_split_is_read_as_a_file_of_the_same_records_is(hub):
    asked = hub(ROME)
    found = read("counterfact:hf://azhx/counterfact@c01c413f#test")
    assert found == read(DATA.joinpath("counterfact_rome.json").as_posix())
    options = {"revision": "c01c413f", "data_files": None, "split": "test"}
    assert asked == [("azhx/counterfact", options)]


def test_the_only_split_needs_no_name_and_several_do(hub):
    hub({"train": ROME})
    assert len(read("counterfact:hf://a/b")) == 3
    hub({"CF3k": ROME, "T": ROME})
    with pytest.raises(
        RequestError, match="hf://a/b: has the splits CF3k, T; name one, for example"
    ):
        read("counterfact:hf://a/b")


def test_a_bad_record_of_the_hub_is_named_by_its_address_and_number(hub):
    hub([ROME[0], {"case_id": 3}])
    _, bad = read("counterfact:hf://a/b#train")
    assert (
        str(bad) == "hf://a/b#train, record 2 (case_id 3): field 'prompt' is missing; found case_id"
    )


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        RequestError, match=r"needs the package datasets: pip install 'kedit-lab\[hub\]'"
    ):
        read("counterfact:hf://a/b")


@pytest.mark.parametrize(
    "error", [ConnectionError("offline\nmode"), FileNotFoundError("no such set"), RuntimeError("?")]
)
def test_what_the_hub_refuses_is_one_sentence(hub, error):
    hub(error)
    with pytest.raises(
        RequestError, match=r"^hf://a/b: cannot be had from the hub \(.+\)$"
    ) as said:
        read("counterfact:hf://a/b")
    assert "\n" not in str(said.value)


def test_one_json_file_is_downloaded_and_parsed_here(monkeypatch):
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options))
        return str(DATA / "knowedit_wiki_recent.json")

    module = ModuleType("huggingface_hub")
    module.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    found = read("knowedit:hf://zjunlp/KnowEdit/benchmark/wiki_recent/recent_test.json")
    assert found == read(str(DATA / "knowedit_wiki_recent.json"))
    options = {"revision": None, "repo_type": "dataset"}
    assert asked == [("zjunlp/KnowEdit", "benchmark/wiki_recent/recent_test.json", options)]


@pytest.mark.parametrize(
    ("name", "schema"),
    [("counterfact_rome.json", "counterfact"), ("mquake_remastered.jsonl", "mquake")],
)
def test_datasets_itself_gives_the_same_requests(tmp_path, monkeypatch, name, schema):
    pytest.importorskip(
        "datasets", reason="datasets is not installed: pip install 'kedit-lab[hub]'"
    )
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    shutil.copy(DATA / name, folder / f"train{Path(name).suffix}")
    monkeypatch.chdir(tmp_path)  # a folder of that name is taken before the hub's data set
    found, wanted = read(f"{schema}:hf://owner/name"), read(str(DATA / name))
    assert [(one.id, one.portability, one.locality) for one in found] == [
        (one.id, one.portability, one.locality) for one in wanted
    ]
