"""Records of the hub's data sets, through ``datasets``: the extra ``kedit-lab[hub]``."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from re import compile as pattern
from textwrap import shorten
from typing import Any

from attrs import frozen

from kedit_core.errors import RequestError
from kedit_lab.records import records_of

HUB = "hf://"
_FORM = "hf://OWNER/NAME[@REVISION][/FILE][#SPLIT]"
_ADDRESS = pattern(
    r"hf://(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/#@]+))?(?:/(?P<file>[^#]+))?(?:#(?P<split>.+))?"
)


@frozen(kw_only=True)
class Address:
    """Where a data set lies on the hub.

    Attributes:
        id: owner and name.
        revision: branch, tag or commit; None is the newest.
        file: one file of it; None takes what the hub offers as its splits.
        split: such as ``train``; None takes the only one.
    """

    id: str
    revision: str | None = None
    file: str | None = None
    split: str | None = None


def address_of(place: str) -> Address:
    """Return the parts of ``hf://OWNER/NAME[@REVISION][/FILE][#SPLIT]``.

    Raises:
        RequestError: it does not have that form.
    """
    match = _ADDRESS.fullmatch(place)
    if match is None:
        raise RequestError(f"is no address of a data set; write {_FORM}", place)
    return Address(**match.groupdict())


def records_of_the_hub(place: str) -> Iterator[Any]:
    """Return the records of a data set on the hub, or of one JSON file of it.

    What was downloaded once is read without a network.

    Raises:
        RequestError: ``datasets`` is not installed, or the data set cannot be had.
    """
    address = address_of(place)
    try:
        with _quiet():
            if address.file is not None and address.file.endswith((".json", ".jsonl")):
                return records_of(_downloaded(address, address.file))
            return iter(_split(address, place))
    except RequestError:
        raise
    except ImportError:
        raise RequestError(
            "reading from the hub needs the package datasets: pip install 'kedit-lab[hub]'", place
        ) from None
    # What a network, a cache and a builder of a data set can raise is known to nobody.
    except Exception as error:  # noqa: BLE001
        said = shorten(str(error), 160, placeholder=" …") or type(error).__name__
        raise RequestError(f"cannot be had from the hub ({said})", place) from None


def _downloaded(address: Address, file: str) -> str:
    """Return the local path of one file; it is parsed here, as no table holds answers of mixed depth."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(address.id, file, revision=address.revision, repo_type="dataset")


def _split(address: Address, place: str) -> Iterable[Any]:
    from datasets import load_dataset

    found: Mapping[str, Iterable[Any]] | Iterable[Any] = load_dataset(
        address.id, revision=address.revision, data_files=address.file, split=address.split
    )
    if not isinstance(found, Mapping):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    first = next(iter(found))
    raise RequestError(f"has the splits {', '.join(found)}; name one, for example #{first}", place)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep each of the hub's repeated questions from being told of: what comes of them is one sentence."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
