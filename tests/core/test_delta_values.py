import copy
import pickle

import pytest
import torch
from attrs import evolve

from kedit_core import Delta, Dense, EditRequest, LowRank, Provenance, Score, SideMemory
from kedit_core.deltas import update_of
from kedit_core.digests import digest, fingerprint, state_digest, tokenizer_fingerprint
from kedit_core.errors import DeltaError
from kedit_core.reports import Applied, EvalReport

REQUEST = EditRequest(prompt="{} is", subject="Paris", target_new="Italy")


def factors(out_features=3, rank=1, in_features=4, **kind):
    left = torch.arange(out_features * rank, **kind).reshape(out_features, rank).float()
    return left, torch.ones(rank, in_features, **kind).float()


def low_rank(weight="mlp.weight", **sizes):
    left, right = factors(**sizes)
    return LowRank(weight=weight, left=left, right=right)


def delta(**changes):
    made = {"method": "mine", "requests": [REQUEST], "parts": [low_rank()]}
    return Delta(**{**made, **changes})


@pytest.mark.parametrize(
    ("left", "right", "complaint"),
    [
        (torch.ones(3), torch.ones(1, 4), "left has shape .3,., a matrix is needed"),
        (torch.ones(3, 0), torch.ones(0, 4), "left has shape .3, 0., a matrix is needed"),
        (torch.ones(3, 2), torch.ones(1, 4), "left has rank 2, right has 1"),
        (torch.ones(3, 1).half(), torch.ones(1, 4), "left is torch.float16, float32 is needed"),
        (torch.ones(3, 1), torch.ones(1, 4).long(), "right is torch.int64, float32 is needed"),
        (
            torch.ones(3, 1).double(),
            torch.ones(1, 4),
            "left is torch.float64, right is torch.float",
        ),
        (torch.ones(3, 1), torch.full((1, 4), torch.nan), "right holds values that are not finite"),
        (torch.full((3, 1), torch.inf), torch.ones(1, 4), "left holds values that are not finite"),
    ],
)
def test_factors_that_make_no_update_are_refused_and_name_their_weight(left, right, complaint):
    with pytest.raises(DeltaError, match=f"^h.0.mlp.weight: {complaint}"):
        LowRank(weight="h.0.mlp.weight", left=left, right=right)


@pytest.mark.parametrize(
    "update", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(2, 2).bfloat16(), torch.ones(0, 2)]
)
def test_a_dense_update_is_a_full_precision_matrix(update):
    with pytest.raises(DeltaError, match="update"):
        Dense(weight="w", update=update)


def test_shapes_are_out_features_by_in_features():
    assert low_rank(out_features=3, in_features=4).shape == (3, 4)
    assert Dense(weight="w", update=torch.ones(3, 4)).shape == (3, 4)


@pytest.mark.parametrize(("rank", "kind"), [(1, LowRank), (3, LowRank), (4, Dense), (9, Dense)])
def test_an_update_keeps_its_factors_while_they_are_the_smaller_thing(rank, kind):
    left, right = torch.randn(6, rank), torch.randn(rank, 9)  # 15 rank < 54
    part = update_of("w", left, right)
    assert type(part) is kind
    assert part.shape == (6, 9)
    whole = part.update if isinstance(part, Dense) else part.left @ part.right
    torch.testing.assert_close(whole, left @ right)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "other"},
        {"requests": []},
        {"requests": [REQUEST, evolve(REQUEST, target_new="Spain")]},
        {"parts": [low_rank("other.weight")]},
        {"parts": [low_rank(), low_rank()]},
        {"parts": [Dense(weight="mlp.weight", update=low_rank().left @ low_rank().right)]},
        {"parts": [low_rank(out_features=4)]},
        {"parts": [SideMemory(at="mlp", tensors={})]},
        {"parts": [SideMemory(at="mlp", tensors={}, settings={"k": 1})]},
        {"parts": [SideMemory(at="", tensors={"keys": torch.ones(2)})]},
        {"carry": {"keys": torch.zeros(2)}},
        {"carry": {"values": torch.zeros(2)}},
    ],
)
def test_whatever_a_delta_does_is_in_its_id(changes):
    assert delta(**changes).id != delta().id
    assert delta(**changes) != delta()


def test_an_id_forgets_where_a_delta_comes_from_and_what_judges_it():
    elsewhere = delta(provenance=Provenance(device="cuda", seed=3, notes={"loss": 0.1}))
    judged = delta(requests=[evolve(REQUEST, paraphrases=("Paris?",))])
    assert elsewhere.id == judged.id == delta().id
    assert elsewhere == delta()


def test_equal_bits_make_equal_deltas_however_they_are_stored():
    left, right = factors()
    views = LowRank(
        weight="mlp.weight",
        left=torch.stack([left, left], 1)[:, 0],
        right=right.T.contiguous().T.requires_grad_(),
    )
    assert delta(parts=[views]) == delta()
    assert delta(parts=[views]).id == delta().id
    assert len({delta(parts=[views]), delta(), delta(method="other")}) == 2


def test_the_sign_of_a_zero_is_a_difference():
    left, right = factors()
    signed = LowRank(weight="mlp.weight", left=-left, right=-right)
    assert torch.equal(signed.left @ signed.right, left @ right)
    assert delta(parts=[signed]).id != delta().id


def test_a_delta_copies_and_pickles():
    made = delta(parts=[low_rank(), SideMemory(at="", tensors={"a": torch.ones(2)})])
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (again, again.id) == (made, made.id)


def test_a_printed_delta_shows_shapes_and_no_numbers():
    shown = repr(delta(carry={"keys": torch.zeros(2, 5)}))
    assert "<3x1 float32>" in shown
    assert "keys: <2x5 float32>" in shown
    assert "tensor(" not in shown


@pytest.mark.parametrize("value", [{1, 2}, torch.tensor(1.0), b"bytes"])
def test_settings_and_notes_that_no_file_can_hold_are_refused_before_anything_is_in_force(value):
    with pytest.raises(DeltaError, match="no JSON values"):
        SideMemory(at="", tensors={}, settings={"value": value})
    with pytest.raises(DeltaError, match="no JSON values"):
        Provenance(notes={"value": value})


def test_settings_are_held_as_they_come_back_from_a_file():
    assert SideMemory(at="", tensors={}, settings={"layers": (1, 2)}).settings == {"layers": [1, 2]}


def test_only_parts_of_weights_are_called_weights():
    parts = [low_rank(), SideMemory(at="", tensors={}), Dense(weight="w", update=torch.ones(1, 1))]
    assert list(delta(parts=parts).weights()) == [parts[0], parts[2]]


TENSORS = [
    torch.zeros(0),
    torch.zeros(0, 3),
    torch.zeros(()),
    torch.zeros(3),
    torch.zeros(3, 1),
    torch.zeros(1, 3),
    torch.zeros(3).double(),
    torch.zeros(3).bfloat16(),
    torch.zeros(3).half(),
    torch.zeros(3).int(),
    torch.zeros(3).bool(),
    -torch.zeros(3),
    torch.full((3,), torch.nan),
]


def test_tensors_of_different_type_shape_or_bits_have_different_digests():
    assert len({digest(tensor) for tensor in TENSORS}) == len(TENSORS)


def test_a_digest_is_of_the_values_and_not_of_their_place_in_memory():
    matrix = torch.randn(4, 6)
    assert digest(matrix.T) == digest(matrix.T.contiguous())
    assert digest(matrix[1:3, ::2]) == digest(matrix[1:3, ::2].clone())
    assert digest(matrix[:1].expand(3, 6)) == digest(matrix[:1].repeat(3, 1))
    assert digest(matrix.requires_grad_()) == digest(matrix.detach())


def test_one_changed_bit_changes_the_digest_of_a_model(tiny):
    model = tiny()
    before = state_digest(model)
    matrix = next(p for p in model.parameters() if p.ndim == 2)
    with torch.no_grad():
        matrix.view(torch.int32)[0, 0] ^= 1
    assert state_digest(model) != before
    with torch.no_grad():
        matrix.view(torch.int32)[0, 0] ^= 1
    assert state_digest(model) == before


def test_a_fingerprint_names_the_original_of_an_edited_model(tiny):
    model = tiny()
    before = fingerprint(model, {})
    name, matrix = next((n, p) for n, p in model.named_parameters() if p.ndim == 2)
    original = matrix.detach().clone()
    with torch.no_grad():
        matrix.add_(1.0)
    assert fingerprint(model, {}) != before
    assert fingerprint(model, {name: original}) == before


def test_a_fingerprint_tells_seeds_dtypes_and_configurations_apart_but_not_paths(tiny):
    first, again = tiny(seed=1), tiny(seed=1)
    again.config._name_or_path = "/somewhere/else"
    assert fingerprint(first, {}) == fingerprint(again, {})
    others = [tiny(seed=2), tiny(seed=1, dtype=torch.bfloat16), tiny("gpt2", seed=1)]
    wider = tiny(seed=1)
    wider.config.rms_norm_eps = 0.5
    found = {fingerprint(model, {}) for model in (first, *others, wider)}
    assert len(found) == 5


def test_a_tokenizer_is_named_by_its_vocabulary(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    other = copy.deepcopy(tokenizer)
    assert tokenizer_fingerprint(other) == before
    other.add_tokens(["Atlantis"])
    assert tokenizer_fingerprint(other) != before


def test_a_mean_is_over_the_requests_that_have_the_metric():
    scores = [
        Score(metric="reliability.exact", value=1.0, request="a"),
        Score(metric="reliability.exact", value=0.0, request="b"),
        Score(metric="locality.exact", value=1.0, request="a"),
        Score(metric="perplexity", value=8.0),
    ]
    report = EvalReport(method="mine", step=1, scores=tuple(scores))
    assert report.means() == {"reliability.exact": 0.5, "locality.exact": 1.0, "perplexity": 8.0}
    assert EvalReport(method="mine", step=0, scores=()).means() == {}


def test_what_was_applied_is_taken_out_once_even_when_the_block_fails():
    undone = []
    applied = Applied(lambda: undone.append(1))
    with pytest.raises(ZeroDivisionError), applied:
        raise ZeroDivisionError
    applied.undo()
    assert undone == [1]


def test_an_undo_that_failed_can_be_asked_again():
    attempts = []

    def undo():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("no memory")

    applied = Applied(undo)
    with pytest.raises(OSError, match="no memory"):
        applied.undo()
    applied.undo()
    applied.undo()
    assert len(attempts) == 2
