"""One routing decision per sequence, taken on its prompt and kept.

While the KV cache is empty, a forward reads prompts: now a memory decides, row by row. The decision goes
into the cache of the generation (``kept``), so that the tokens which follow are answered as the prompt was.
Without a cache the prompt grows from pass to pass; there a wrapped ``generate`` remembers how long it was.

A memory may let the model read a prompt in the midst of a pass, before it decides (``Routing.reading``); all
memories stand aside then, and the pass goes on as if nothing had been read.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from transformers.cache_utils import Cache

from kedit_core.reports import Applied
from kedit_memory.kept import Kept, Owner, is_empty, keep, kept_in
from kedit_memory.passages import Passage, named, outside

Answer = Callable[[Passage, Any], Any]
"""Takes a pass and what the model put out; returns what it shall put out instead, or the same."""

_GENERATE = "generate"
_READER: ContextVar["Routing | None"] = ContextVar("reader", default=None)
"""Who lets a model read; every other memory stands aside."""


class _Generation:
    """One call of ``generate``: how long its prompts are, and what is kept where there is no cache."""

    def __init__(self, prompt: int | None) -> None:
        self.prompt = prompt
        self.kept: Kept | None = None

    def kept_of(self, rows: int) -> Kept | None:
        """Return what an earlier pass of so many rows kept, or None."""
        return self.kept if self.kept is not None and len(self.kept.decision) == rows else None


class _Now(threading.local):
    """What runs in this thread: a model may serve several."""

    generation: _Generation | None = None

    def __init__(self) -> None:
        # The innermost pass last; None for one that a memory stands aside of.
        self.passages: list[Passage | None] = []


class Routing:
    """Watches the forward passes of a model for one memory.

    The memory's own hooks, on whatever modules it stands beside, ask for :attr:`passage`: where it
    ``reads_a_prompt`` they decide and ``settle``, else ``kept.decision`` says what was decided.

    Attributes:
        owner: under which caches keep its decisions.
    """

    def __init__(self, model: nn.Module) -> None:
        """Watch ``model``, once attached."""
        self._model, self._now, self.owner = model, _Now(), Owner()

    def __deepcopy__(self, _: Any) -> "Routing":
        """Return the same: a copy of the model that is watched shares its hooks."""
        return self

    @property
    def passage(self) -> Passage | None:
        """Return the pass that runs now; None where a module is called on its own, or others read."""
        return self._now.passages[-1] if self._now.passages else None

    def attach(self, hooks: Sequence[Any] = (), answer: Answer | None = None) -> Applied:
        """Begin to watch; ``undo()`` of what comes back takes everything out again.

        Args:
            hooks: handles of the memory's own hooks, removed with the rest.
            answer: called after each pass, for memories that answer themselves. It may settle the
                decision; who settles none is outside.
        """
        model = self._model

        def end(_: nn.Module, __: Any, output: Any) -> Any:
            return self._end(output, answer)

        handles = [
            *hooks,
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(end),
            model.register_forward_hook(self._clear, always_call=True),
        ]
        generate = self._wrap_generate()

        def undo() -> None:
            for handle in handles:
                handle.remove()
            if generate is not None:
                generate.end()
                _unwrap(model)

        return Applied(undo)

    @contextmanager
    def reading(self, hooks: Sequence[Any] = ()) -> Iterator[None]:
        """Watch the passes inside the block without memories: all others stand aside of them.

        It may be entered in the midst of a pass, to read its prompt before a decision is taken.

        Args:
            hooks: handles of hooks that note what is read, removed at the end.
        """
        handles = [
            *hooks,
            self._model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self._model.register_forward_hook(self._clear, always_call=True),
        ]
        before = _READER.set(self)
        try:
            yield
        finally:
            _READER.reset(before)
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if _READER.get() not in (None, self):
            self._now.passages.append(None)
            return None
        given = named(module, args, kwargs)
        cache, generation = given.get("past_key_values"), self._now.generation
        kept = kept_in(cache, self.owner)
        whole = kept is None and is_empty(cache)
        prompt = None if generation is None else generation.prompt
        passage = Passage(given, whole=whole, kept=kept, prompt=prompt)
        if not whole and kept is None:
            passage.kept = outside(passage.shape[0])
        elif whole and generation is not None:
            passage.kept = generation.kept_of(passage.shape[0])
        self._now.passages.append(passage)
        if given.get("return_dict") is False:
            return (), {**given, "return_dict": True}
        return None

    def _end(self, output: Any, answer: Answer | None) -> Any:
        passage = self.passage
        if passage is None:
            return None
        said = output if answer is None else answer(passage, output)
        if passage.kept is not None and passage.whole:
            self._keep(passage.kept, said)
        if passage.given.get("return_dict") is False:
            return said.to_tuple()
        return said

    def _keep(self, kept: Kept, said: Any) -> None:
        """Put what is kept where the next pass of the same sequences will look for it."""
        cache = getattr(said, "past_key_values", None)
        if cache is not None and (kept.inside or isinstance(cache, Cache)):
            keep(cache, self.owner, kept)
        elif cache is None and self._now.generation is not None:
            self._now.generation.kept = kept

    def _clear(self, *_: Any) -> None:
        if self._now.passages:
            self._now.passages.pop()

    def _wrap_generate(self) -> "_Wrapped | None":
        """Put a ``generate`` into the model that says how long its prompts are."""
        model: Any = self._model
        inner = getattr(model, _GENERATE, None)
        if inner is None:
            return None
        wrapped = _Wrapped(inner, vars(model).get(_GENERATE), self._generating)
        setattr(model, _GENERATE, wrapped)
        return wrapped

    @contextmanager
    def _generating(self, prompt: int | None) -> Iterator[None]:
        before = self._now.generation
        self._now.generation = _Generation(prompt)
        try:
            yield
        finally:
            self._now.generation = before


class _Wrapped:
    """A ``generate`` that says how long its prompts are, until it is ended.

    Attributes:
        before: what stood in its place in the model, or None.
        ended: whether it only passes on what it is asked.
    """

    def __init__(self, inner: Any, before: Any, generating: Callable[[int | None], Any]) -> None:
        self._inner, self.before, self._generating, self.ended = inner, before, generating, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.ended:
            return self._inner(*args, **kwargs)
        read = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        read = kwargs.get("inputs_embeds") if read is None else read
        with self._generating(None if read is None else read.shape[1]):
            return self._inner(*args, **kwargs)

    def end(self) -> None:
        """Say nothing any more; others may have wrapped this one, which must still be passed through."""
        self.ended = True


def _unwrap(model: Any) -> None:
    """Take what has ended out of a model, from the outermost on."""
    while True:
        found = vars(model).get(_GENERATE)
        if not (isinstance(found, _Wrapped) and found.ended):
            return
        if found.before is None:
            delattr(model, _GENERATE)
        else:
            setattr(model, _GENERATE, found.before)
