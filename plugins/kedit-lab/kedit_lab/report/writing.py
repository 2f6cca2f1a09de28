"""What ``kedit lab report`` does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import asdict, frozen

from kedit_core.cli.screen import print_json, screen
from kedit_core.errors import KeditError
from kedit_core.files import check_writable, write_atomically
from kedit_lab.report.page import found, page


@frozen(kw_only=True)
class Written:
    """A report that was written.

    Attributes:
        run: folder of the run.
        out: the file.
        bytes: its size.
        verdict: what it says in a sentence or two.
    """

    run: str
    out: str
    bytes: int
    verdict: str


def write_report(folder: Path, out: Path) -> Written:
    """Write the report of a run.

    Args:
        folder: of the run.
        out: the file; it is there whole or not at all.

    Raises:
        KeditError: there is no run, or the file cannot be written.
    """
    from kedit_core.run_reading import read_run

    with _writing(out):
        check_writable(out)
    run = read_run(folder)
    text = page(run).encode()
    with _writing(out):
        write_atomically(out, lambda target: _fill(target, text))
    return Written(run=str(folder), out=str(out), bytes=len(text), verdict=found(run))


def show_written(written: Written, as_json: bool) -> None:
    """Show where the report is and what it says."""
    if as_json:
        print_json(asdict(written))
        return
    console = screen()
    console.print(written.verdict, markup=False, soft_wrap=True)
    console.print(f"written to {written.out}", markup=False, soft_wrap=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeditError(f"--out {out} cannot be written ({error.strerror})") from None


def _fill(target: Path, text: bytes) -> None:
    target.write_bytes(text)
