#!/usr/bin/env python3
r"""Starts processes on this machine that form one JAX job, to try a pod's work.

  JAX_PLATFORMS=cpu launch/local.sh 2 -- \
    python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR

Each process runs COMMAND in this folder, with .venv's python. It finds the
other processes by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID. The coordinator listens on localhost only. Lines are shown
behind the process's number. When one process fails the others are ended, and
its exit code is this program's. Ctrl-C ends all (twice: at once).

Machines with GPUs or TPUs need one process for all of them: COUNT is 1.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import launcher

PROGRAM = "launch/local.sh"
PROCESSES = launcher.Kind(launcher.COUNT.pattern, "how many processes to start")
TICK = 0.05  # seconds between looks at the processes
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# Exit codes of a mistake, of bad flags, and of a process that saved because it
# was asked to end: started again, the same command would end in the same way.
FINAL = (1, 2, 75)
# Sources a file of flags, then becomes the command.
WITH_FLAGS = 'flags=$1; shift; . "$flags"; exec "$@"'


def say(text: str) -> None:
  """Prints a line of this program's own."""
  print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def free_port() -> int:
  """Returns a port that nobody listens on."""
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


def command_of(index: int, count: int, port: int, command: list[str]):
  """Returns the command line of a process.

  The coordinator asks nobody who they are, so that only this machine may reach
  it.
  """
  variables = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
    "JAX_COORDINATOR_BIND_ADDRESS": f"localhost:{port}",
    "JAX_NUM_PROCESSES": count,
    "JAX_PROCESS_ID": index,
  }
  return ["env", *(f"{k}={v}" for k, v in variables.items()), *command]


class Job:
  """The processes of one start, and what ended them.

  Attributes:
    code: 0; the exit code of the process that failed first; or that of the
      signal that interrupted this program.
    failed: the number of the process that failed first.
    interrupts: how many signals have asked this program to end.
  """

  def __init__(self, flags: pathlib.Path | None, grace: int):
    self.flags = flags
    self.grace = grace
    self.processes: list[subprocess.Popen] = []
    self.readers: list[threading.Thread] = []
    self.lock = threading.Lock()  # one line at a time
    self.code, self.failed, self.interrupts = 0, None, 0
    for number in SIGNALS:
      # What was ignored from the start stays so, as under nohup.
      if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, self.interrupt)

  def interrupt(self, number: int, frame) -> None:
    """Notes a signal, which `run` acts upon."""
    del frame
    self.code = SIGNALS[number]
    self.interrupts += 1

  def start(self, index: int, words: list[str]) -> None:
    """Starts a process and the thread that shows its lines."""
    if self.flags:
      words = ["sh", "-c", WITH_FLAGS, "sh", str(self.flags), *words]
    # In a group of its own: Ctrl-C is for this program to pass on, and what a
    # process leaves behind can be found.
    process = subprocess.Popen(
      words,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      process_group=0,
    )
    self.processes.append(process)
    reader = threading.Thread(target=self.show, args=(index, process.stdout))
    reader.daemon = True
    reader.start()
    self.readers.append(reader)

  def show(self, index: int, lines) -> None:
    """Prints lines behind a number; who reads no more ends no process."""
    for line in lines:
      with self.lock:
        try:
          sys.stdout.buffer.write(b"[%d] %s\n" % (index, line.rstrip(b"\n")))
          sys.stdout.buffer.flush()
        except OSError:
          os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    lines.close()

  def running(self) -> bool:
    """Returns whether a process runs; notes the first that failed."""
    left = False
    for index, process in enumerate(self.processes):
      code = process.poll()
      left |= code is None
      if code and not self.code:
        self.failed = index
        self.code = 128 - code if code < 0 else code
    return left

  def end_all(self) -> None:
    """Asks the processes to end, and after the grace makes them."""
    for process in self.processes:
      # Not its group: workers that read data must live while it saves.
      process.terminate()
    before, end = self.interrupts, time.monotonic() + self.grace
    while self.running() and self.interrupts == before:
      if time.monotonic() > end:
        break
      time.sleep(TICK)
    self.kill_groups()
    while self.running():
      time.sleep(TICK)

  def kill_groups(self) -> None:
    """Kills what processes have left running."""
    for process in self.processes:
      # Nobody is left; on macOS, only a process that has ended.
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)

  def run(self, commands: list[list[str]]) -> None:
    """Starts all and waits until they have ended."""
    for index, words in enumerate(commands):
      self.start(index, words)
    while self.running() and not self.code:
      time.sleep(TICK)
    if self.code:
      if self.failed is not None:
        say(
          f"process {self.failed} ended with exit code {self.code}, ending the "
          "others."
        )
      self.end_all()
    self.kill_groups()
    interrupts = self.interrupts
    while any(reader.is_alive() for reader in self.readers):
      if self.interrupts > interrupts:
        return
      for reader in self.readers:
        reader.join(TICK)

  def again(self) -> bool:
    """Returns whether one failed that may do better, uninterrupted."""
    return (
      self.failed is not None and self.code not in FINAL and not self.interrupts
    )

  def forget(self) -> None:
    """Makes ready for another start."""
    self.processes, self.readers = [], []
    self.code, self.failed = 0, None


def make_parser() -> launcher.Parser:
  """Returns the parser of the flags."""
  flags = launcher.Parser(PROGRAM, __doc__, "COUNT [FLAGS] -- COMMAND")
  flags.define(
    "--restarts",
    launcher.COUNT,
    "starts all again when one fails, so often at most; not after a mistake "
    "(exit codes 1 and 2), nor if it was asked to end (a signal, or 75)",
  )
  flags.define("--env", launcher.FLAGS_FILE, "the flags of launch/env/NAME.sh")
  flags.define(
    "--grace",
    launcher.COUNT,
    "seconds to end by oneself (SIGTERM) before being killed",
    default="10",
  )
  flags.define(
    "--port", launcher.COUNT, "of the coordinator; a free one otherwise"
  )
  flags.define_common("")
  return flags


def body(parser: launcher.Parser, words: list[str]) -> int:
  """Runs the program."""
  count = words[0] if words else ""
  PROCESSES.check(count, "the first argument")
  args = parser.read(words[1:])
  launcher.need_command(args)
  if args.port and int(args.port) > 65535:
    raise ValueError(
      f"--port is '{args.port}', expected a number from 1 to 65535."
    )
  flags = launcher.need_env(args.env) if args.env else None
  bin_folder = launcher.ROOT / ".venv" / "bin"
  if bin_folder.is_dir():
    os.environ["PATH"] = f"{bin_folder}:{os.environ.get('PATH', os.defpath)}"

  def commands() -> list[list[str]]:
    port = int(args.port or free_port())
    return [
      command_of(i, int(count), port, args.command) for i in range(int(count))
    ]

  if args.dry_run:
    sources = [[".", str(flags)]] if flags else []
    for line in [*sources, *commands()]:
      launcher.run(line, dry_run=True)
    return 0
  job = Job(flags, int(args.grace))
  job.run(commands())
  for restart in range(1, int(args.restarts or 0) + 1):
    if not job.again():
      break
    say(f"starting all again, restart {restart} of {args.restarts}.")
    job.forget()
    job.run(commands())
  if job.failed is not None:
    say(f"process {job.failed} was first to fail, exit code {job.code}.")
  return job.code


if __name__ == "__main__":
  launcher.main(make_parser(), body)
