"""Whatever interrupts an edit, and whenever: the model is as it was, to the last bit."""

import ast
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from kedit_core import EditRequest, Probe, hookimpl
from kedit_core.interrupts import uninterrupted
from kedit_core.progress import Progress

MOMENTS = 20
METHODS = ("writer", "batcher", "memory", "shrinking")


class Stop(BaseException):
    """What interrupts; no ``except Exception`` may swallow it."""


@pytest.fixture(autouse=True)
def ctrl_c():
    """Give every test Python's own handler: a runner in the background may ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def everything(state_of, logits):
    """Return what tells all of a model, what it says included: a memory shows nowhere else."""

    def of(model):
        said = logits(model) if not model.training else None
        hooks = [len(module._forward_hooks) for module in model.modules()]
        # The hook of a memory has a new number whenever it was taken out and put back.
        digest, _, *rest = state_of(model)
        return digest, hooks, rest, None if said is None else said.numpy().tobytes()

    return of


def moments_until(last, seed):
    """Return seeded random moments, the first of them 1."""
    return sorted(Random(seed).sample(range(1, last + 1), MOMENTS))


# Exceptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, Stop])
@pytest.mark.parametrize("method", METHODS)
def test_an_edit_broken_off_at_any_module_call_leaves_the_model_as_it_was(
    edit_with, facts, state_of, method, error
):
    editor = edit_with(method)
    kept = editor.edit(facts(1)[0])
    asked = facts(1, start=1)[0]
    editor.model.train()
    calls, stop_at = 0, None

    def count(*_):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise error

    for module in editor.model.modules():
        module.register_forward_hook(count)
    editor.edit(asked)
    editor.undo()
    total, state = calls, state_of(editor.model)[0:1] + state_of(editor.model)[2:]
    assert total > MOMENTS
    for moment in moments_until(total, seed=0):
        calls, stop_at = 0, moment
        with pytest.raises(error):
            editor.edit(asked)
        after = state_of(editor.model)
        assert after[0:1] + after[2:] == state
        assert editor.deltas == (kept,)
    stop_at = None
    editor.edit(asked)
    editor.undo()
    editor.undo()
    assert editor.deltas == ()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_edit_broken_off_by_whoever_shows_its_progress_leaves_the_model_as_it_was(
    edit_with, facts, state_of, at
):
    class Breaking(Progress):
        armed = False

        def task(self, description, total, unit=""):
            done = 0
            shown = super().task(description, total, unit)

            class Task:
                def __enter__(self):
                    shown.__enter__()
                    return self

                def __call__(self, count):
                    nonlocal done
                    done += count
                    if Breaking.armed and done > at:
                        raise Stop

                def __exit__(self, *error):
                    if Breaking.armed and at == 2:
                        raise Stop
                    return shown.__exit__(*error)

            return Task()

    editor = edit_with("batcher", progress=Breaking())
    kept = editor.edit(facts(2))
    state = state_of(editor.model)
    Breaking.armed = True
    with pytest.raises(Stop):
        editor.edit(facts(1, start=2))
    assert state_of(editor.model) == state
    with pytest.raises(Stop):
        editor.remove(kept.requests[0].id)
    assert state_of(editor.model) == state
    assert editor.deltas == (kept,)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("hook", ["compute_delta", "apply_delta"])
@pytest.mark.parametrize("method", METHODS)
def test_an_edit_broken_off_by_a_strangers_wrapper_leaves_the_model_as_it_was(
    edit_with, facts, plugins, everything, method, hook, after
):
    stranger, armed = ModuleType("stranger"), []

    @hookimpl(wrapper=True)
    def wrapper():
        if armed and not after:
            armed.clear()
            raise Stop
        found = yield
        if armed:
            armed.clear()
            if hook == "apply_delta":
                found.undo()  # it got in, and whoever throws its handle away takes it out
            raise Stop
        return found

    setattr(stranger, hook, wrapper)
    plugins.register(stranger)
    editor = edit_with(method)
    kept = editor.edit(facts(1)[0])
    state = everything(editor.model)
    armed.append(True)
    with pytest.raises(Stop):
        editor.edit(facts(1, start=1)[0])
    assert everything(editor.model) == state
    assert editor.deltas == (kept,)


# Ctrl-C


def consistent(editor, everything, states):
    """See that the model is what the editor says of it."""
    return everything(editor.model) == states[tuple(delta.id for delta in editor.deltas)]


@pytest.mark.parametrize("method", METHODS)
def test_a_real_ctrl_c_at_random_delays_finds_the_model_before_or_after_the_edit(
    edit_with, facts, everything, method
):
    editor = edit_with(method)
    asked = facts(1)[0]
    states = {(): everything(editor.model)}
    started = time.perf_counter()
    delta = editor.edit(asked)
    seconds = time.perf_counter() - started
    states[delta.id,] = everything(editor.model)
    editor.undo()
    random, broken_off = Random(0), 0
    for _ in range(MOMENTS):
        sent = threading.Event()

        def send(sent=sent):
            os.kill(os.getpid(), signal.SIGINT)
            sent.set()

        timer = threading.Timer(random.uniform(0, 1.2) * seconds, send)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come a little late
            timer.start()
            editor.edit(asked)
            waited = 0
            while not sent.is_set() or waited < 1000:
                waited += 1
                time.sleep(0.001)
        timer.join()
        assert consistent(editor, everything, states)
        broken_off += not editor.deltas
        while editor.deltas:
            editor.undo()
    assert consistent(editor, everything, states)
    editor.edit(asked)
    assert consistent(editor, everything, states)


@cache
def _openings_of_with(filename):
    """Return the lines on which blocks are entered, and left: no signal is handled while leaving."""
    tree = ast.parse(Path(filename).read_text(encoding="utf-8"))
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for line in range(node.lineno, node.body[0].lineno)
    }


def with_ctrl_c(moment, action):
    """Run ``action``; at the ``moment``-th step of core's own code a Ctrl-C arrives.

    Returns the number of steps.
    """
    steps = 0

    def trace(frame, event, _):
        nonlocal steps
        name = frame.f_globals.get("__name__", "")
        here = frame.f_code.co_filename
        ours = name == "contextlib" or name.startswith("kedit_core")
        # What a generator raises while it is thrown away goes nowhere.
        if not ours or here.startswith("<") or frame.f_code.co_name == "<genexpr>":
            return None
        if event == "call" or (event == "line" and frame.f_lineno not in _openings_of_with(here)):
            steps += 1
            if steps == moment:
                signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return steps


def probed(request):
    probe = Probe(prompt="the capital of land9 is", answers=("Rome",))
    return EditRequest(prompt=request.prompt, target_new=request.target_new, locality=(probe,))


def look_at_the_original(editor):
    with editor.original():
        editor.model.get_input_embeddings()


ACTIONS = {
    "edit": lambda editor, asked, _: editor.edit(asked[2], editor.deltas[-1].method),
    "undo": lambda editor, *_: editor.undo(),
    "remove": lambda editor, asked, _: editor.remove(asked[0].id),
    "recompute": lambda editor, *_: editor.undo(editor.deltas[0].id, recompute=True),
    "load": lambda editor, _, file: editor.load(file),
    "evaluate": lambda editor, asked, _: editor.evaluate(probed(asked[0]), ["locality.kl"]),
    "original": lambda editor, *_: look_at_the_original(editor),
    "complete": lambda editor, asked, _: editor.complete([asked[0].prompt], 1),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("method", ["batcher", "shrinking"])
def test_a_ctrl_c_at_any_step_finds_the_model_as_the_editor_says_it_is(
    edit_with, facts, everything, tmp_path, method, action
):
    other = "memory" if method == "batcher" else "batcher"
    editor, asked, file = edit_with(method), facts(4), tmp_path / "more.kedit"
    more = edit_with(other)
    more.edit(asked[3])
    more.save(file)
    if action != "load":  # the memory comes on top of the weights
        editor.edit(asked[:2], "batcher")
        editor.edit(asked[3], "memory" if method == "batcher" else method)
    editor.save(tmp_path / "start.kedit")
    states = {tuple(delta.id for delta in editor.deltas): everything(editor.model)}

    def act():
        ACTIONS[action](editor, asked, file)

    def back():
        while editor.deltas:
            editor.undo()
        editor.load(tmp_path / "start.kedit")

    steps = with_ctrl_c(0, act)
    states[tuple(delta.id for delta in editor.deltas)] = everything(editor.model)
    back()
    assert steps > 50
    for moment in moments_until(steps, seed=action + method):
        with suppress(KeyboardInterrupt):  # it comes after all is done where it had to wait
            with_ctrl_c(moment, act)
        assert consistent(editor, everything, states), f"step {moment} of {steps}"
        back()
        assert consistent(editor, everything, states), f"undone after step {moment} of {steps}"


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted() as gate, gate.open():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_ctrl_c_goes_to_the_handler_that_the_program_has_set():
    got = []
    signal.signal(signal.SIGINT, lambda *_: got.append("Ctrl-C"))
    try:
        with uninterrupted() as gate:
            signal.raise_signal(signal.SIGINT)
            assert got == []
            with gate.open():
                assert got == ["Ctrl-C"]
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                assert got == ["Ctrl-C"] * 3
            signal.raise_signal(signal.SIGINT)
        assert got == ["Ctrl-C"] * 4
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_second_ctrl_c_waits_until_the_first_one_is_cleaned_up():
    steps = []

    def work():
        with uninterrupted() as gate:
            try:
                with uninterrupted() as inner, inner.open(), gate.open():
                    signal.raise_signal(signal.SIGINT)
                    steps.append("never here")
            finally:
                signal.raise_signal(signal.SIGINT)
                steps.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["cleaned up"]


def test_a_ctrl_c_while_something_is_deleted_comes_as_soon_as_it_can_be_raised():
    """What is raised in ``__del__`` reaches nobody."""

    class Deleted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    reached = []

    def work():
        with uninterrupted() as gate:
            with gate.open():
                Deleted()
                reached.append("the end of the block")
            with gate.open():
                reached.append("the next one")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the end of the block"]


def test_gates_within_gates_let_a_ctrl_c_through_only_when_all_are_open():
    steps = []

    def work():
        with uninterrupted() as outer:
            with uninterrupted() as inner, inner.open():
                signal.raise_signal(signal.SIGINT)
                steps.append("held back by the outer gate")
            steps.append("still held back")
            with outer.open():
                steps.append("never here")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["held back by the outer gate", "still held back"]


def test_nothing_is_held_back_outside_the_main_thread():
    handlers = []

    def work():
        with uninterrupted() as gate, gate.open():
            handlers.append(signal.getsignal(signal.SIGINT))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert handlers == [signal.default_int_handler]
