"""Consistency: whether a model writes about an edited subject as people write about its new object.

What the model writes and what people wrote become vectors of words, each weighed by its TF-IDF; the
score is the cosine between the two (Meng et al., 2022, arXiv:2202.05262, §3.3 and appendix).
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit_core import EditBatch, EditRequest, Score
from kedit_core.errors import ConfigError
from kedit_core.model_metrics import written
from kedit_lab.texts import texts_of

_WORD = re.compile(r"\b\w\w+\b")
_Texts = tuple[str, ...]


class TfIdf:
    """Words weighed by how few of a collection's texts hold them."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Count the words of a collection; ``texts`` are its documents."""
        documents = [set(_words(text)) for text in texts]
        holding = Counter(word for document in documents for word in document)
        self._weights = {
            word: math.log((1 + len(documents)) / (1 + count)) + 1
            for word, count in holding.items()
        }

    def cosine(self, one: str, other: str) -> float:
        """Return the cosine between two texts, 0 where one holds no word of the collection."""
        first, second = self._vector(one), self._vector(other)
        product = sum(weight * second.get(word, 0.0) for word, weight in first.items())
        length = math.hypot(*first.values()) * math.hypot(*second.values())
        return product / length if length else 0.0

    def _vector(self, text: str) -> dict[str, float]:
        counts = Counter(word for word in _words(text) if word in self._weights)
        return {word: count * self._weights[word] for word, count in counts.items()}


def consistency(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: EditBatch,
    options: Mapping[str, Any],
) -> Iterator[Score]:
    """Yield the consistency of each request that has reference texts.

    Args:
        model: in ``eval`` mode.
        tokenizer: the model's.
        batch: whole requests.
        options: ``texts``, ``tokens`` and ``seed``.

    Raises:
        ConfigError: the file of reference texts cannot be read.
        RequestError: what a request brings are no texts.
    """
    snippets = _snippets(options["texts"]) if "texts" in options else {}
    references = {one.id: _references(one, snippets) for one in batch.requests}
    judged = [one for one in {one.id: one for one in batch.requests}.values() if references[one.id]]
    if not judged:
        return
    # Of the whole file, so that a request's score does not depend on which others are judged.
    own = dict.fromkeys(text for texts in references.values() for text in texts)
    weigher = TfIdf([text for texts in snippets.values() for text in texts] if snippets else own)
    prompts = {one.id: _prompts(one) for one in judged}
    asked = list(dict.fromkeys(text for texts in prompts.values() for text in texts))
    said = dict(
        zip(asked, written(model, tokenizer, asked, batch.chat, _sampling(options)), strict=True)
    )
    for one in judged:
        texts = " ".join(said[prompt] for prompt in prompts[one.id])
        value = weigher.cosine(texts, " ".join(references[one.id]))
        yield Score(metric="consistency", request=one.id, value=value)


def _prompts(request: EditRequest) -> _Texts:
    return texts_of(request, "generation_prompts") or (request.prompt, *request.paraphrases)


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("tokens", "seed") if name in options}


def _references(request: EditRequest, snippets: Mapping[tuple[str, str], _Texts]) -> _Texts:
    """Return the texts that a request brings itself, else those of its relation and new object."""
    named = tuple(str(request.extra.get(name)) for name in ("relation_id", "target_new_id"))
    return texts_of(request, "reference_texts") or snippets.get((named[0], named[1]), ())


def _snippets(path: Any) -> dict[tuple[str, str], _Texts]:
    """Return the reference texts of a file, by relation and object."""
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _refused(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:  # no UTF-8, or no JSON
        raise _refused(f"{path} is not a file of JSON") from None
    found: dict[tuple[str, str], _Texts] = {}
    for place, record in enumerate(records if isinstance(records, list) else [records]):
        try:
            key = (str(record["relation_id"]), str(record["target_id"]))
            texts = [sample["text"] for sample in record["samples"]]
        except (KeyError, TypeError):
            texts, key = [None], ("", "")
        if not all(isinstance(text, str) for text in texts):
            wanted = "relation_id, target_id and samples with a text each"
            raise _refused(f"record {place + 1} of {path} does not have {wanted}")
        found[key] = (*found.get(key, ()), *texts)
    return found


def _refused(problem: str) -> ConfigError:
    return ConfigError("metrics", [f"consistency: {problem}"])


def _words(text: str) -> Sequence[str]:
    return _WORD.findall(text.lower())
