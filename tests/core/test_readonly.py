"""What is handed to methods cannot be written to, and is otherwise what it always was."""

import copy
import json
import pickle

import pytest
import torch
from attrs import asdict, evolve

from kedit_core import Delta, EditRequest, Provenance, SideMemory
from kedit_core.readonly import read_only

VALUES = {"radius": 0.5, "layers": [1, {"at": 2}], "empty": {}, "pair": (1, [2])}

WRITES = [
    lambda values: values.update(radius=1),
    lambda values: values.__setitem__("radius", 1),
    lambda values: values.__delitem__("radius"),
    lambda values: values.__ior__({"radius": 1}),
    lambda values: values.setdefault("new", 1),
    lambda values: values.pop("radius"),
    lambda values: values.popitem(),
    lambda values: values.clear(),
    lambda values: values["layers"].append(3),
    lambda values: values["layers"].__setitem__(0, 3),
    lambda values: values["layers"].__delitem__(0),
    lambda values: values["layers"].__iadd__([3]),
    lambda values: values["layers"].__imul__(2),
    lambda values: values["layers"].extend([3]),
    lambda values: values["layers"].insert(0, 3),
    lambda values: values["layers"].pop(),
    lambda values: values["layers"].remove(1),
    lambda values: values["layers"].reverse(),
    lambda values: values["layers"].sort(),
    lambda values: values["layers"].clear(),
    lambda values: values["layers"][1].update(at=3),
    lambda values: values["pair"][1].append(3),
]


@pytest.mark.parametrize("write", WRITES)
def test_every_way_of_writing_is_refused_and_nothing_changed(write):
    values = read_only(VALUES)
    with pytest.raises(TypeError, match=r"read-only; change a copy of it, (dict|list)\("):
        write(values)
    assert values == VALUES


def test_every_method_that_changes_a_dict_or_a_list_is_refused():
    special = (
        "setattr delattr getattribute getitem getstate init_subclass init new reduce reduce_ex"
    )
    shown = (
        "class class_getitem contains dir doc eq format ge gt hash iter le len lt ne repr reversed"
    )
    giving_new_ones = "or ror add mul rmul sizeof str subclasshook"
    reading = {f"__{name}__" for name in f"{special} {shown} {giving_new_ones}".split()}
    reading |= {"copy", "count", "fromkeys", "get", "index", "items", "keys", "values"}
    for made in (read_only(VALUES), read_only(VALUES)["layers"]):
        plain = type(made).__mro__[1]
        same = {name for name in dir(plain) if getattr(type(made), name) is getattr(plain, name)}
        assert same - reading == set()


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_copies_are_equal_and_read_only_too(again):
    copied = again(read_only(VALUES))
    assert copied == VALUES
    with pytest.raises(TypeError, match="read-only"):
        copied["layers"].append(3)
    request = EditRequest(prompt="x is", target_new="y", extra=VALUES)
    assert again(request) == request


def test_it_is_json_like_a_plain_dict_and_a_copy_by_dict_can_be_written_to():
    values = read_only(VALUES)
    assert json.dumps(values) == json.dumps(VALUES)
    free = dict(values)
    free["radius"] = 1
    assert values["radius"] == 0.5


def test_requests_and_deltas_keep_what_they_hold_from_being_replaced():
    request = EditRequest(prompt="x is", target_new="y", extra={"tags": ["a"]})
    part = SideMemory(at="", tensors={"key": torch.ones(1)}, settings={"layers": [1]})
    provenance = Provenance(notes={"loss": [0.1]})
    carry = {"sum": torch.ones(1)}
    delta = Delta(method="m", requests=[request], parts=[part], carry=carry, provenance=provenance)
    for write in (
        lambda: request.extra["tags"].append("b"),
        lambda: part.settings["layers"].append(2),
        lambda: part.tensors.pop("key"),
        lambda: delta.carry.update(sum=torch.zeros(1)),
        delta.provenance.notes["loss"].clear,
    ):
        with pytest.raises(TypeError, match="read-only"):
            write()
    carry.clear()  # the caller's own stays the caller's
    assert evolve(delta) == delta
    assert delta.carry.keys() == {"sum"}
    assert asdict(request)["extra"] == {"tags": ["a"]}
    assert type(asdict(request)["extra"]) is dict
