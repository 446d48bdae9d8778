"Work done in children of this process: what it says and how it ends, within limits of time, memory and disk."
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

DEFECT = 70  # exit status of a child in which something was raised that no program should end with


class Ended(NamedTuple):
    "How a child ended: its exit `status` (negative: killed by that signal), its standard `output` and its `error` stream."
    status: int
    output: str
    error: str


def memory() -> int:
    "Bytes of addresses that this process has."
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def resident(name) -> int:
    "Bytes of memory that this process holds (`VmRSS`), or has held at most since `forget_peak` (`VmHWM`)."
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")) * 1024


def forget_peak(): Path("/proc/self/clear_refs").write_text("5")


def limit(seconds, more, largest):
    "Let this process run for so many seconds, with `more` bytes of memory than it has, and write files of at most `largest` bytes."
    if seconds: signal.alarm(seconds)
    if more: resource.setrlimit(resource.RLIMIT_AS, (memory() + more,) * 2)
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails then, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def status_of(call) -> int:
    "The exit status that Python would end with after `call()`, whose last words go to the error stream."
    try: call()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int): return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return DEFECT
    return 0


def forked(call, seconds=10, more=2 ** 30, largest=None, output=None) -> Ended:
    "What `call()` does in a fork of this process, within limits; its standard output goes to the file `output`, if one is named."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(output or f"{folder}/output")
        reader, writer = os.pipe()  # of a pipe, no limit on files takes the last words
        child = os.fork()
        if not child:
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, errors="backslashreplace")
            limit(seconds, more, largest)
            status = status_of(call)
            for stream in (sys.stdout, sys.stderr):
                try: stream.flush()
                except OSError: status = status or 120
            os._exit(status)
        os.close(writer)
        with open(reader, errors="replace") as stream: error = stream.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ended(status, file.read_text(errors="replace") if file.is_file() else "", error)
