"""A counterfactual model that brings its own vocabulary: a small causal language model and its tokenizer.

It reads an edit and a query as its own tokenizer reads their texts,

    edit prompt | target | query

a line's end in the places of the bars, and what it says is text too (``bridging``). All of it is tensors and
JSON: weights, configuration, and the tokenizer's spelling as the bytes of its JSON.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from attrs import asdict, frozen
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from kedit_core.errors import ModelError
from kedit_memory.decoders import Padded

_LINE = "\n"
_SAMPLE = "The capital of Peru is Lima.\nZoë's 3rd, 水."
_LOCAL = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
_SPELLING = "spelling"


@frozen(kw_only=True)
class Language:
    """What a language model and its tokenizer are made from, beside tensors.

    Attributes:
        config: of the model, JSON values.
        special: the tokenizer's special tokens by role.
        line: the token id in the places of the bars.
    """

    config: Mapping[str, Any]
    special: Mapping[str, str]
    line: int

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


class Bridged(nn.Module):
    """A causal language model that reads an edit and a query in its own tokens."""

    spelling: Tensor

    def __init__(self, shape: Language, model: Any, spelling: bytes) -> None:
        """Take a model, and its tokenizer as the bytes of its JSON."""
        super().__init__()
        self.shape, self.language = shape, model
        self.register_buffer(_SPELLING, torch.frombuffer(bytearray(spelling), dtype=torch.uint8))

    def train(self, mode: bool = True) -> "Bridged":  # noqa: ARG002
        """Stay without dropout: what a step of training does depends on its number alone."""
        return super().train(False)

    @cached_property
    def tokenizer(self) -> Any:
        """Return its tokenizer."""
        return _tokenizer_of(bytes(self.spelling.cpu().numpy()), self.shape.special)

    def forward(self, base: Any, text: Padded) -> Tensor:  # noqa: ARG002
        """Return logits (rows, tokens, its vocabulary); ``base`` lends it nothing."""
        device = next(self.language.parameters()).device
        mask = text.mask.to(device)
        logits: Tensor = self.language(
            input_ids=self.ids_of(text.codes).to(device),
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).logits
        return logits

    def ids_of(self, codes: Tensor) -> Tensor:
        """Return token ids, a line's end where codes have a bar."""
        return torch.where(codes < 0, self.shape.line, codes)

    def head(self, base: Any, said: Tensor) -> Tensor:  # noqa: ARG002
        """Return logits of what :meth:`forward` gave: these are they."""
        return said

    def sayable(self, base: Any) -> tuple[int, ...]:  # noqa: ARG002
        """Return the token ids that it says."""
        return tuple(range(int(self.language.get_input_embeddings().weight.shape[0])))

    def beside(self, weight: Tensor) -> "Bridged":
        """Return it on the device of a weight of the base, in the dtype that it was trained in."""
        return self.to(weight.device)


def bridged(model: Any, tokenizer: Any) -> Bridged:
    """Return a copy of a language model, in float32, with its tokenizer.

    Args:
        model: a causal language model of transformers.
        tokenizer: the model's.

    Raises:
        ModelError: the tokenizer has no fast version or does not come back whole from its JSON, or the
            model's code is not in transformers.
    """
    name = type(model).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            name, "has a tokenizer without a fast version, which cannot be kept as data"
        )
    spelling = tokenizer.backend_tokenizer.to_str().encode()
    special = {
        role: str(token)
        for role, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    if _read_by(_tokenizer_of(spelling, special)) != _read_by(tokenizer):
        raise ModelError(name, "has a tokenizer that does not come back whole from its JSON")
    config = json.loads(model.config.to_json_string(use_diff=False))
    shape = Language(
        config={key: one for key, one in config.items() if key not in _LOCAL},
        special=special,
        line=tokenizer(_LINE, add_special_tokens=False)["input_ids"][-1],
    )
    own = {key: one.detach().float() for key, one in model.state_dict().items()}
    made = new_bridged(shape, spelling)
    made.language.load_state_dict(own)
    return made


def new_bridged(shape: Language, spelling: bytes) -> Bridged:
    """Return a model of this shape with weights of any kind; no global random state moves.

    Args:
        shape: of the model.
        spelling: of its tokenizer, the bytes of its JSON.

    Raises:
        ModelError: its code is not in transformers.
    """
    own = json.loads(json.dumps(shape.config))  # what a delta lends is read-only
    kind = own.pop("model_type", "")
    with torch.random.fork_rng():
        try:
            make: Any = AutoModelForCausalLM.from_config
            model = make(AutoConfig.for_model(kind, **own), dtype=torch.float32)
        except ValueError as error:
            raise ModelError(
                kind, f"is no causal language model of transformers ({error})"
            ) from error
    return Bridged(shape, model, spelling).eval()


def spelling_in(weights: Mapping[str, Tensor]) -> bytes:
    """Return the tokenizer's JSON among the tensors of a :class:`Bridged`."""
    return bytes(weights[_SPELLING].cpu().numpy())


def _tokenizer_of(spelling: bytes, special: Mapping[str, str]) -> Any:
    made: Any = PreTrainedTokenizerFast
    return made(
        tokenizer_object=Tokenizer.from_str(spelling.decode()),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _read_by(tokenizer: Any) -> tuple[Any, str]:
    ids = tokenizer(_SAMPLE)["input_ids"]
    return ids, tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
