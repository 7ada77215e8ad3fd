"""Exit codes and messages of the command."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_embed import __version__
from dist_embed.cli import main as module
from dist_embed.cli.main import main
from dist_embed.data.processes import ProcessEnded
from dist_embed.errors import NotWritable, RunFailed, RunStopped, StoreUnavailable, UserError
from dist_embed.observe import quiet
from dist_embed.observe.events import Screen
from dist_embed.parallel.stop import SIGNALS, stop_on_signals
from dist_embed.storage.temporary import temporary_folder
from dist_embed.storage.uri import whole_file
from dist_embed.streams import has_seen_enough, say

Doing = Callable[[Callable[[], None]], int]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.fixture
def doing(monkeypatch: pytest.MonkeyPatch) -> Doing:
    """The exit code of a command ``act`` that does what it is given."""
    monkeypatch.setattr(quiet, "quiet_screen", lambda: None)  # of this process, the tests'

    def run(act: Callable[[], None]) -> int:
        def add_commands(commands: Any) -> None:
            commands.add_parser("act").set_defaults(call=lambda _: act())

        monkeypatch.setattr(
            module, "import_module", lambda name: SimpleNamespace(add_commands=add_commands)
        )
        monkeypatch.setattr(module, "_MODULES", ("one",))
        return main(["act"])

    return run


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr() == (f"dist-embed {__version__}\n", "")


def test_a_command_removes_what_killed_ones_have_left(
    doing: Doing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("dist_embed-words-") as ours:
        left = Path(f"{ours}-left")
        left.mkdir()
        assert doing(lambda: None) == 0
        assert list(tmp_path.iterdir()) == [Path(ours)]


ITSELF = UserError("its own cause")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def taking(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such split"), 2, "dist-embed: no such split\n"),
        (StoreUnavailable("s3 is silent"), 2, "dist-embed: s3 is silent\n"),
        (OSError(errno.ENOENT, "none", "/x"), 2, "dist-embed: [Errno 2] none: '/x'\n"),
        (OSError(errno.ENOSPC, "no space", "/x"), 1, "dist-embed: [Errno 28] no space: '/x'\n"),
        (OSError(errno.EROFS, "read-only", "/x"), 1, "dist-embed: [Errno 30] read-only: '/x'\n"),
        (caused(UserError("full"), OSError(errno.EDQUOT, "")), 1, "dist-embed: full\n"),
        (caused(UserError("gone"), OSError(errno.ENOENT, "")), 2, "dist-embed: gone\n"),
        (caused(ITSELF, ITSELF), 2, "dist-embed: its own cause\n"),
        (NotWritable("not ours"), 1, "dist-embed: not ours\n"),
        (RunFailed("worker 1 failed"), 1, "dist-embed: worker 1 failed\n"),
        (
            OSError(errno.EMFILE, "too many", "/x"),
            1,
            "dist-embed: [Errno 24] too many: '/x'; more are allowed by `ulimit -n`\n",
        ),
        (MemoryError(), 1, "dist-embed: out of memory\n"),
        (MemoryError("8 GiB"), 1, "dist-embed: out of memory: 8 GiB\n"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            "dist-embed: out of memory: DefaultCPUAllocator: can't allocate memory\n",
        ),
        (
            RuntimeError("can't start new thread"),
            1,
            "dist-embed: can't start new thread: no memory "
            "for it, or a limit: ulimit -u, or the container's\n",
        ),
        (RunStopped("after step 5"), 143, "dist-embed: after step 5\n"),  # a worker was asked
        (BrokenPipeError(errno.EPIPE, "broken", "standard output"), 0, ""),
        (BrokenPipeError(errno.EPIPE, "broken"), 1, "dist-embed: [Errno 32] broken\n"),
        (ProcessEnded("one was killed"), 1, "dist-embed: one was killed\n"),
    ],
)
def test_errors_have_their_exit_codes(
    error: Exception, code: int, said: str, doing: Doing, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doing(raising(error)) == code
    assert capsys.readouterr().err == said


def socket_pair() -> tuple[int, int]:
    here, there = socket.socketpair()
    return here.detach(), there.detach()


@pytest.mark.parametrize("opened", [os.pipe, socket_pair])
def test_a_broken_pipe_is_enough_for_the_reader_of_our_output_alone(
    opened: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = opened()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert not has_seen_enough(BrokenPipeError())
        os.close(reader)
        assert has_seen_enough(BrokenPipeError())


def test_a_pipe_that_breaks_while_a_file_is_written_is_not_that_file(
    doing: Doing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        with whole_file(str(tmp_path / "x")):
            raise BrokenPipeError(errno.EPIPE, "broken")

    assert doing(act) == 1
    assert capsys.readouterr().err == "dist-embed: [Errno 32] broken\n"


@pytest.mark.parametrize("words", [["--quiet", "act"], ["act", "--quiet"]])
def test_a_quiet_command_shows_results_and_errors_alone(
    words: list[str], doing: Doing, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def act() -> None:
        Screen(sys.stdout).show({"kind": "line", "text": "at 3"})
        say("by the way")
        print("result")
        raise UserError("but not so")

    monkeypatch.setattr(module, "in_new_words", lambda _: (words, None))
    assert doing(act) == 2
    assert capsys.readouterr() == ("result\n", "dist-embed: but not so\n")
    monkeypatch.setattr(module, "in_new_words", lambda words: (words, None))
    assert doing(act) == 2
    assert "at 3" in capsys.readouterr().out


def test_a_shell_is_told_what_may_stand_next() -> None:
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_TYPE": "9", "IFS": "\n",
             "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout"}  # fmt: skip

    def after(line: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "dist_embed.cli.main"],
            capture_output=True, text=True, check=False,
            env=os.environ | asked | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [word.strip() for word in done.stdout.splitlines()]

    assert after("dist-embed exp") == ["export"]
    assert after("dist-embed train c.yaml search.bea") == ["search.beam="]


def test_a_command_that_ends_well() -> None:
    assert main(["config", "schema"]) == 0


def test_a_bug_keeps_its_traceback(doing: Doing) -> None:
    with pytest.raises(ZeroDivisionError):
        doing(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGTERM, 143, "SIGTERM"),
        (signal.SIGINT, 130, "SIGINT"),
        (signal.SIGHUP, 129, "SIGHUP"),
    ],
)
def test_a_signal_ends_a_command_without_a_traceback(
    number: int, code: int, name: str, doing: Doing, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doing(lambda: taking(number)) == code
    said = f"dist-embed: ended by {name}; a run of this command goes on from what it has saved\n"
    assert capsys.readouterr().err == said

    def stopped() -> None:
        with stop_on_signals():
            taking(number)
        taking(number)
        raise RunStopped("stopped as asked after step 5")

    assert doing(stopped) == code
    assert capsys.readouterr().err == "dist-embed: stopped as asked after step 5\n"


@pytest.mark.parametrize("becomes", [ImportError, UserError, KeyboardInterrupt])
def test_what_a_library_makes_of_a_signal_is_told_as_the_signal(
    becomes: type[BaseException], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def importing(name: str) -> None:
        try:
            taking(signal.SIGINT)
        except SystemExit as exc:
            raise becomes("a module of C could not be loaded") from exc

    monkeypatch.setattr(module, "import_module", importing)
    assert main(["config", "schema"]) == 130
    assert capsys.readouterr().err.startswith("dist-embed: ended by SIGINT")


def test_a_failure_after_a_request_to_stop_is_told_as_the_failure(
    doing: Doing, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        with stop_on_signals():
            taking(signal.SIGINT)
            raise RunFailed("the workers did not end")

    assert doing(failing) == 1
    assert capsys.readouterr().err == "dist-embed: the workers did not end\n"


def test_a_worker_of_torchrun_is_ended_by_the_signal_itself() -> None:
    code = (
        "import signal\n"
        "from dist_embed.cli.main import main\n"
        "main(['config', 'schema'])\n"
        "print('ready', flush=True)\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGINT
    assert "ready" in done.stdout
    assert done.stderr == ""


def test_a_command_that_a_library_will_not_let_go_ends_with_its_code_and_words() -> None:
    """Ray's threads crash the interpreter's end while its head stands still (2.60)."""
    code = (
        "import atexit, sys\n"
        "from dist_embed.cli import main\n"
        "from dist_embed.parallel.stop import end_abruptly\n"
        "atexit.register(print, 'crashed')\n"
        "main._command = lambda argv: print('said') or end_abruptly() or 143\n"
        "sys.exit(main.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "said\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_are_no_error(closed: str) -> None:
    command = f"exec {sys.executable} -m dist_embed.cli.main config schema {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stream", "call", "code"),
    [("stdout", "lambda _: print('little')", 0), ("full", "lambda _: print('little')", 1),
     ("full", "lambda _: Screen(sys.stdout).show({'kind': 'line', 'text': 'at 3'})", 0),
     ("stderr", "lambda _: open('/nowhere')", 2)],
)  # fmt: skip
def test_nobody_need_read_what_the_command_says(stream: str, call: str, code: int) -> None:
    # Without a reader the interpreter's own last flush would end with 120.
    text = (
        "import signal, sys\n"
        "from types import SimpleNamespace\n"
        "from dist_embed.cli import main\n"
        "from dist_embed.observe.events import Screen\n"
        f"add = lambda commands: commands.add_parser('act').set_defaults(call={call})\n"
        "main.import_module = lambda name: SimpleNamespace(add_commands=add)\n"
        "main._MODULES = ('one',)\n"
        "sys.argv[1:] = ['act']\n"
        "code = main.main()\n"
        "for number in (1, 2, 15):\n"
        "    signal.raise_signal(number)\n"  # too late
        "sys.exit(code)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    if stream == "full":
        stream, writer = "stdout", os.open("/dev/full", os.O_WRONLY)
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    buffered = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", text], env=buffered, **{**streams, stream: writer})
    os.close(writer)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_named(unbuffered: str) -> None:
    text = (
        "from dist_embed.cli.main import main\n"
        "codes = []\n"
        "for word in ('--version', '--help'):\n"
        "    try:\n"
        "        codes.append(main([word]))\n"
        "    except SystemExit as exc:\n"
        "        codes.append(exc.code)\n"
        "import os, sys\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
        "sys.exit(0 if codes == [1, 1] else f'{codes}')\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No space left on device: 'standard output'") == 2


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", b"? ?\n"), ("ascii:backslashreplace", b"\\u2192 \\xe9\n"),
     ("ascii:surrogateescape", b"? ?\n")],  # the last as in the locale C
)  # fmt: skip
def test_letters_that_the_screen_lacks_are_replaced(encoding: str, shown: bytes) -> None:
    text = (
        "import sys\n"
        "from types import SimpleNamespace\n"
        "from dist_embed.cli import main\n"
        "call = lambda _: print('\\u2192 \\xe9')\n"
        "add = lambda commands: commands.add_parser('act').set_defaults(call=call)\n"
        "main.import_module = lambda name: SimpleNamespace(add_commands=add)\n"
        "main._MODULES = ('one',)\n"
        "sys.argv[1:] = ['act']\n"
        "sys.exit(main.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["config", "show", "CONFIG"],
        ["submit", "CONFIG", "--dry-run", "--to", "slurm"],
        ["submit", "CONFIG", "--dry-run", "--to", "ray"],
        ["submit", "CONFIG", "--dry-run", "--to", "kubernetes"],
        ["config", "schema"],
        ["config", "reference"],
        ["config", "reference", "--study"],
    ],
)
def test_what_may_be_kept_as_a_file_has_its_letters_on_every_screen(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "{run: {uri: 's3://b/größe'}, data: {synthetic: {}}, train: {max_steps: 1}, cluster: "
        "{submit: {kubernetes: {image: i, memory_gib: 1.0}}}}",
        encoding="utf-8",
    )
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main([str(config) if word == "CONFIG" else word for word in command]) == 0
    text = written.getvalue().decode()
    assert ("größe" if "CONFIG" in command else "\n") in text
    if "reference" in command:
        assert any(ord(letter) > 127 for letter in text)


def test_a_translation_asks_for_its_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quiet, "quiet_screen", lambda: None)
    for name in ("stdin", "stdout"):
        with monkeypatch.context() as closed:
            closed.setattr(sys, name, None)
            assert main(["translate", "no-run"]) == 2
        option = name.removeprefix("std") + "put"
        said = f"dist-embed: --{option}: '-' is not allowed: standard {option} is closed\n"
        assert capsys.readouterr().err == said
