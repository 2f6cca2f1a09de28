"""What my-method promises beyond the contract."""

import torch

from kedit_core import Editor, EditRequest, LowRank
from kedit_core.testing import byte_level_tokenizer, tiny_model


def test_an_edit_is_of_rank_one_and_in_the_layer_that_was_asked_for() -> None:
    torch.set_num_threads(1)
    model, tokenizer = tiny_model("llama"), byte_level_tokenizer(bos=False)
    editor = Editor(model, tokenizer, "my-method", {"layer": 0})
    fact = EditRequest(prompt="The capital of {} is", subject="Norway", target_new="Lima")
    (part,) = editor.edit(fact).parts
    assert isinstance(part, LowRank)
    assert part.weight == editor.weights.layout.down_of(0).weight
    assert part.left.shape[1] == part.right.shape[0] == 1
