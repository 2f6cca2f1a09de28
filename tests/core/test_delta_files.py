import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kedit_core import Delta, Dense, EditRequest, LowRank, Probe, Provenance, SideMemory
from kedit_core.delta_files import load_deltas, save_deltas
from kedit_core.errors import DeltaError
from kedit_core.files import write_atomically


def made(number=0, **changes):
    request = EditRequest(
        prompt="{} is",
        subject="Zürich",
        target_new=f"日本{number}",
        locality=(Probe(prompt="x", answers="y"),),
        extra={"case": number},
    )
    low = LowRank(weight="a.weight", left=torch.randn(3, 2), right=torch.randn(2, 4))
    dense = Dense(weight="b.weight", update=torch.randn(2, 2).double())
    tensors = {"keys": torch.randn(2, 3).bfloat16(), "a/b": torch.tensor(3), "": torch.zeros(0, 2)}
    memory = SideMemory(at="", tensors=tensors, settings={"k": [1, None], "name": "é"})
    provenance = Provenance(
        base={"a.weight": {"float32": "00"}},
        config={"layer": 3, "search": {"steps": 2}},
        chat=True,
        seed=7,
        versions={"kedit-core": "0.1.0"},
        device="cpu",
        after=("1" * 16,),
        notes={"loss": 0.25, "prefixes": ["", "Yes. "]},
    )
    values = {
        "method": "mine",
        "requests": [request],
        "parts": [low, dense, memory],
        "carry": {"keys": torch.randn(3), "flags": torch.tensor([True, False])},
        "provenance": provenance,
    }
    return Delta(**{**values, **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "one.delta"


def said(described):
    """Return the header of a file of these deltas."""
    return {"kedit": json.dumps({"format": "2", "deltas": described})}


def header_of(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


def rewrite(path, change):
    """Save the file again with its description, or its tensors, changed."""
    header, tensors = header_of(path)
    described = json.loads(header["kedit"])["deltas"]
    change(described, tensors)
    save_file(tensors, path, metadata=said(described))


def test_a_delta_comes_back_whole_with_its_id_and_its_provenance(path):
    delta = made()
    save_deltas([delta], path)
    (back,) = load_deltas(path)
    assert back == delta
    assert back.id == delta.id
    assert back.provenance == delta.provenance
    assert back.requests == delta.requests


@pytest.mark.parametrize("count", [0, 1, 12])
def test_a_file_keeps_any_number_of_deltas_in_their_order(path, count):
    deltas = tuple(made(number) for number in range(count))
    save_deltas(deltas, path)
    assert load_deltas(path) == deltas


def test_tensors_that_share_memory_are_stored_each_on_its_own(path):
    block = torch.randn(4, 4)
    delta = made(
        parts=[LowRank(weight="a", left=block[:, :1], right=block[:1])],
        carry={"block": block, "same": block, "turned": block.T},
    )
    save_deltas([delta], path)
    assert load_deltas(path) == (delta,)


@pytest.mark.parametrize(
    "part", ["0/part/0/left", "0/part/1/update", "0/part/2/keys", "0/carry/keys"]
)
def test_a_changed_number_is_noticed_by_the_id(path, part):
    save_deltas([made()], path)
    rewrite(path, lambda _, tensors: tensors[part].reshape(-1)[:1].neg_())
    with pytest.raises(DeltaError, match="its content is not what was saved under this id"):
        load_deltas(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described[0].update(method="other"),
        lambda described: described[0]["requests"][0].update(target_new="elsewhere"),
        lambda described: described[0]["parts"][0].update(weight="c.weight"),
        lambda described: described[0]["parts"][2]["settings"].update(k=2),
        lambda described: described[0]["parts"].pop(),
        lambda described: described[0].pop("id"),
        lambda described: described[0].pop("provenance"),
        lambda described: described[0]["provenance"].update(moon="full"),
        lambda described: described[0]["parts"][0].update(kind="sparse"),
        lambda described: described[0]["requests"][0].update(prompt=""),
        lambda described: described.__setitem__(0, "text"),
        lambda described: described.__setitem__(0, None),
    ],
)
def test_a_changed_description_is_noticed_and_names_the_file(path, change):
    save_deltas([made()], path)
    rewrite(path, lambda described, _: change(described))
    with pytest.raises(DeltaError, match=f"^{path}: "):
        load_deltas(path)


def test_a_missing_tensor_is_damage(path):
    save_deltas([made()], path)
    rewrite(path, lambda _, tensors: tensors.pop("0/part/0/right"))
    with pytest.raises(DeltaError, match="is damaged"):
        load_deltas(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused_wherever_it_was_cut(path, share):
    save_deltas([made()], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DeltaError, match="is no whole safetensors file"):
        load_deltas(path)


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (None, "is no delta file"),
        ({"format": "pt"}, "is no delta file"),
        ({"kedit": "1", "deltas": "[]"}, "is format 1 of delta file, this kedit reads 2"),
        (
            {"kedit": '{"format": "3", "deltas": []}'},
            "is format 3 of delta file, this kedit reads 2",
        ),
        ({"kedit": '{"format": "2"}'}, "is damaged"),
        ({"kedit": '{"format": "2", "deltas": 5}'}, "is damaged"),
        ({"kedit": "{}"}, "is damaged"),
        ({"kedit": "{"}, "is damaged"),
        ({"kedit": "[" * 100_000}, "is damaged"),
    ],
)
def test_somebody_elses_file_is_refused_with_the_reason(path, metadata, complaint):
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    with pytest.raises(DeltaError, match=complaint):
        load_deltas(path)


def test_a_pickle_is_never_opened(path, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    torch.save(Bomb(), path)
    with pytest.raises(DeltaError):
        load_deltas(path)
    assert not (tmp_path / "boom").exists()


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(DeltaError, match="there is no such file"):
        load_deltas(tmp_path / "absent")


def test_what_no_file_can_hold_is_an_error_of_kedit_and_leaves_the_old_file_whole(path):
    save_deltas([made()], path)
    before = path.read_bytes()
    odd = EditRequest(prompt="x is", target_new="y", extra={"when": object()})
    with pytest.raises(DeltaError, match=r"cannot be written .*not JSON serializable"):
        save_deltas([made(requests=[odd])], path)
    assert path.read_bytes() == before


def test_a_file_lands_in_a_folder_that_is_made_for_it_and_leaves_nothing_else_there(tmp_path):
    path = tmp_path / "deep" / "er" / "one.delta"
    save_deltas([made()], path)
    save_deltas([made(1)], path)
    assert [found.name for found in path.parent.iterdir()] == ["one.delta"]
    assert load_deltas(path)[0].requests[0].extra == {"case": 1}


def test_a_saved_file_is_readable_as_the_umask_allows(path):
    before = os.umask(0o022)
    try:
        save_deltas([made()], path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("obstacle", ["file", "folder", "name"])
def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path, obstacle):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    target = {
        "file": tmp_path / "file" / "one.delta",
        "folder": tmp_path / "folder",
        "name": tmp_path / ("x" * 400),
    }[obstacle]
    with pytest.raises(DeltaError, match=r"cannot be written") as refused:
        save_deltas([made()], target)
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "folder").iterdir())


def test_a_device_or_a_pipe_is_never_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DeltaError, match="it is there and no file"):
        save_deltas([made()], pipe)
    assert pipe.is_fifo()


@pytest.mark.parametrize("error", [OSError("disk is full"), KeyboardInterrupt()])
def test_a_write_that_fails_halfway_leaves_the_old_file_and_no_other(path, error):
    path.write_text("old")

    def half(target):
        target.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
