"""What a classifier learns from: each prompt read once, in the table of what it asks."""

import torch

from kedit_core import EditRequest, Probe
from kedit_core.layout import layout_of
from kedit_core.progress import Progress
from kedit_core.tokens import encode
from kedit_memory.lexicons import lexicon_of
from kedit_memory.pooling import pooled_states, sites_of
from kedit_memory.scope_examples import examples_of, joined
from kedit_memory.scope_facts import facts_of

REQUESTS = [
    EditRequest(
        prompt="The capital of {} is",
        subject=subject,
        target_new="Oslo",
        paraphrases=(f"{subject} is ruled from",),
        locality=[Probe(prompt=f"The capital of {near} is", answers=("Rome",)) for near in nears],
    )
    for subject, nears in (("Peru", ("Mali", "Chile")), ("Mali", ("Chile",)))
]


def made(model, tokenizer, **named):
    return examples_of(
        model, tokenizer, facts_of(REQUESTS), sites_of(layout_of(model)), Progress(), **named
    )


def test_a_prompt_in_a_table_is_the_pooled_state_of_its_text(model, tokenizer):
    found = made(model, tokenizer)
    prompts = [one.prompt for one in REQUESTS]
    ids = [one.ids for one in encode(tokenizer, prompts)]
    alone = pooled_states(model, sites_of(layout_of(model)), ids, alone=True)
    torch.testing.assert_close(found.states[found.wordings[:, 0]], alone, rtol=1e-4, atol=1e-4)


def test_a_neighbour_that_is_an_edit_itself_is_left_out(model, tokenizer):
    assert (made(model, tokenizer).neighbours >= 0).sum(1).tolist() == [1, 1]
    elsewhere = made(model, tokenizer, edited=["The capital of Chile is"])
    assert (elsewhere.neighbours >= 0).sum(1).tolist() == [0, 0]


def test_joined_tables_point_at_the_same_states(model, tokenizer):
    one = made(model, tokenizer, wordings=2)
    other = made(model, tokenizer, wordings=1, garbles=3)
    both = joined([one, other])
    assert len(both) == 4
    for place, (part, row) in enumerate([(one, 0), (one, 1), (other, 0), (other, 1)]):
        for kind in ("wordings", "garbled", "others", "neighbours"):
            table, own = getattr(both, kind)[place], getattr(part, kind)[row]
            assert torch.equal(both.states[table[table >= 0]], part.states[own[own >= 0]]), kind


def test_a_lexicon_puts_words_behind_the_states(model, tokenizer):
    lexicon = lexicon_of([], 256)
    found, bare = made(model, tokenizer, lexicon=lexicon), made(model, tokenizer)
    features = bare.states.shape[1]
    assert torch.equal(found.states[:, :features], bare.states)
    prompts = [one.prompt for one in REQUESTS]
    assert torch.equal(found.states[found.wordings[:, 0], features:], lexicon.said(prompts))
    assert torch.equal(found.named, lexicon.named(["Peru", "Mali"]))
    assert bare.named.shape == (2, 0)
