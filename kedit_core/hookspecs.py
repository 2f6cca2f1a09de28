"""The hooks: all that a plugin can take part in.

An implementation takes, by name, only the arguments it uses, and gives none of them a default:
pluggy would never pass it. Each sentence under *Contract* is held by a check of
``kedit_core.testing.MethodContract``, or by core and one of its own tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch
    import typer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kedit_core.baseline import Baseline
    from kedit_core.cache import TensorCache
    from kedit_core.deltas import Delta
    from kedit_core.errors import RequestError
    from kedit_core.methods import MethodInfo
    from kedit_core.progress import Progress
    from kedit_core.reports import Applied, Scope, Score
    from kedit_core.requests import EditBatch, EditRequest
    from kedit_core.weights import Weights

hookspec = pluggy.HookspecMarker("kedit")
hookimpl = pluggy.HookimplMarker("kedit")


@hookspec
def method_info() -> MethodInfo:  # type: ignore[empty-body]
    """Say what the method is, what it changes and what it needs.

    Returns:
        The method's card; its name is the name of the entry point.

    Contract:
        - The name is that of the entry point, and every hook takes only arguments of the contract.
        - Neither the plugin module nor this call imports torch or transformers.
        - Every setting has a default, an unknown one is refused, and JSON gives back what was set.
        - A method that does not need the subject edits without one, or raises a RequestError.
    """


@hookspec(firstresult=True)
def compute_delta(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    config: Any,
    previous: Sequence[Delta],
    weights: Weights,
    cache: TensorCache,
    progress: Progress,
) -> Delta | None:
    """Compute what must change for the edits of ``batch`` to hold, and change nothing.

    Args:
        model: in ``eval`` mode, its parameters without ``requires_grad``. For a method of kind
            *weights*
            all earlier deltas are in it; for a memory or a prompt its own is taken out.
        tokenizer: the model's.
        batch: the requests without their probes, the ids of edits to drop (``batch.remove``), whether
            prompts are rendered through the chat template (``batch.chat``), and what the method noted
            when it made the same edits before (``batch.notes``), such as how it cut them to fit the
            memory.
        config: an instance of the method's config class.
        previous: this method's deltas in force, oldest first; for a memory at most one.
        weights: originals, the list in force, and ``temporarily`` for looking at a partly edited
            model.
        cache: tensors that are worth keeping between edits and processes.
        progress: tells the user how far a long computation is.

    Returns:
        The new delta. Of a memory it holds the whole memory, of weights only what this batch adds.
        Sentences under ``warnings`` in its notes are logged as warnings by core.

    Contract:
        - The batch comes without paraphrases and probes: nobody trains on the test.
        - When it returns, model, tokenizer and process are as before: bits, hooks, settings, chance.
        - When it raises, wherever that is, all of them are as before all the same.
        - What a hook is given stays as it was: batch, config, deltas and the tensors in them.
        - Nothing is printed, warned of, logged as a warning, or written outside the cache.
        - Equal inputs and seeds give equal deltas.
        - No state is kept outside deltas, cache and config.
        - A new process gives the same delta, whatever was computed in the old one.
        - Models that share a cache folder get the deltas that each gets with a folder of its own.
        - The delta has parts of the declared kind that fit the model and hold finite numbers.
        - ``carry`` holds the batch's own contribution, never a running total.
        - An edit that was undone leaves no trace in the next one, neither its carry nor its memory.
        - The second delta of a memory holds both edits, and its undo brings the first one back.
        - A request that is removed from a memory no longer holds, and the others still do.
    """


@hookspec(firstresult=True)
def apply_delta(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    delta: Delta,
    config: Any,
    weights: Weights,
) -> Applied | None:
    """Put ``delta`` into the model.

    Core's own implementation writes deltas of kind *weights*; a method of another kind brings its
    own.

    Args:
        model: the model to change in place.
        tokenizer: the model's.
        delta: fits the model; this was checked.
        config: the method's config, restored from the delta's provenance.
        weights: ``weights.add(delta, write=…)`` takes the method's own kernel.

    Returns:
        The handle that takes the delta out again.

    Contract:
        - After the edit the target is likelier than before, and likelier than the old answer.
        - With ``batch.chat`` the target becomes likelier after the prompt as the template renders it.
        - What neighbours answer loses no more of its probability than the test class tolerates.
        - Two requests hold together: made at once by a batched method, else one after the other.
        - Of ten edits made one after the other, a continual method holds seven at the end.
        - ``undo()`` of what comes back leaves the model bit for bit as before.
        - Parameter paths and state-dict keys never change.
        - A delta that was saved and loaded gives a fresh model the same logits, bit for bit.
        - In a bfloat16 model an edit holds as well, and comes out exactly.
        - Alone, in a padded batch and with a KV cache a prompt gets the same answer.
    """


@hookspec
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    deltas: Sequence[Delta],
    baseline: Baseline,
    metrics: Mapping[str, Mapping[str, Any]],
) -> Iterable[Score] | None:
    """Judge the edits of ``batch`` on the model as it is.

    Args:
        model: with ``deltas`` in force.
        tokenizer: the model's.
        batch: whole requests, probes included.
        deltas: all in force, oldest first.
        baseline: ``baseline.value(key, fn)`` runs ``fn(model)`` once on the unedited model.
        metrics: the metric names asked for, each with its options.

    Returns:
        Scores of the asked metrics that this plugin knows, or None.

    Contract:
        - Only metrics that were asked for are computed.
        - A metric that lacks its data is absent, never 0.
        - Judging only reads the model, and prints, warns of and logs nothing.
    """


@hookspec
def metric_names() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Say which metrics this plugin's ``evaluate`` knows.

    Core asks for them before it judges: a name that nobody knows is refused at once, and a metric that
    found no data is counted as missing and not taken for a misspelt one.

    Returns:
        Names, each with a sentence on what it measures.

    Contract:
        - A metric that is named here and finds no data is counted as missing, not refused.
    """


@hookspec(firstresult=True)
def scope_classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    delta: Delta,
    prompts: Sequence[str],
) -> Scope | None:
    """Say which prompts fall in the scope of ``delta``, and which of its edits each one meets.

    Args:
        model: the model with ``delta`` applied or not; it is only read.
        tokenizer: the model's.
        delta: a delta of this method.
        prompts: as a user would type them, before any chat template.

    Returns:
        probability (prompts,) in [0, 1] and, per prompt, the id of the request it meets or None.

    Contract:
        - The probability lies in [0, 1], and the request is one of the delta's or None.
        - A prompt gets the same answer alone and in any batch.
        - Asking only reads the model and the delta, and prints, warns of and logs nothing.
        - The answer is the same whether the delta is in the model or not.
        - The edit's own prompt meets its request, with a higher probability than any unrelated one.
        - The decision is the one that a forward pass on the prompt takes.
        - A batch of prompts in scope and out of it is answered as each is alone, whatever decodes it.
        - Padded on the left or on the right, a row's logits are what they are without pads.
        - ``generate`` says what forward passes say one token after the other.
        - Out of scope the logits are bit for bit those of the model without the memory.
        - With a seed, a batch is sampled the same twice, and out of scope as without the memory.
    """


@hookspec(firstresult=True)
def open_model(
    source: str, dtype: torch.dtype | None, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Open the model that ``source`` names; core's own opens folders and hub ids.

    Args:
        source: what the user typed, for example ``atlas:gpt2``.
        dtype: the dtype to load in, or None for the model's own.
        device: the device to load on, or None for the default.

    Returns:
        Model and tokenizer, or None when the source is somebody else's.

    Contract:
        - A source that is not this plugin's gives None at once, without importing torch.
    """


@hookspec(firstresult=True)
def read_requests(source: str) -> Iterable[EditRequest | RequestError] | None:
    """Read edit requests from ``source``; core's own reads JSON lines.

    Args:
        source: a path or a name such as ``atlas:editable``.

    Returns:
        The requests in order; a record that cannot be read is a RequestError in its place.

    Contract:
        - A request source that is not this plugin's gives None, so that others are asked.
        - The implementation is no generator function: its generator is never None and would shadow
          all others.
    """


@hookspec
def register_commands(cli: typer.Typer) -> None:
    """Add commands to ``kedit`` under the plugin's own name.

    Args:
        cli: the application; ``cli.add_typer(app, name="<plugin>")``.

    Contract:
        - Nothing heavy is imported before a command runs.
    """
