"""The same work on many items: in this process, in several processes, or on a cluster.

Work is a function that makes a worker; a worker is called with one item after another and keeps
what is dear to make, such as a loaded model. An engine decides where workers live and which item
goes to which; it never looks into items or results. What an item raises is a value, `Failed`, and
stops nothing. An item whose worker dies is given to another one, some times.
"""

from __future__ import annotations

__all__ = ["Engine", "EngineError", "Failed", "LocalEngine", "Make", "engine_of", "run_all"]

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Make = Callable[[], Callable[[T], R]]
"""Makes a worker. Called where the worker lives; it and the items must be picklable."""

ATTEMPTS = 3
"""Workers that an item may take with it before it counts as failed."""

DEATHS = 10
"""Times that every worker may die in a row without a result in between."""


class EngineError(RuntimeError):
    """Workers that cannot be kept alive, whatever they are given."""


@dataclass(frozen=True)
class Failed:
    """What became of an item that gave no result.

    Attributes:
        reason: one line for people.
    """

    reason: str


class Engine(Protocol):
    """Where workers live."""

    @property
    def workers(self) -> int:
        """How many items are worked on at a time."""
        ...

    def run(self, make: Make[T, R], items: Sequence[T]) -> Iterator[tuple[int, R | Failed]]:
        """Works on items.

        Returns:
            The number of each item and its result, as they come, in any order. Items whose worker
            died are not among them.

        Raises:
            EngineError: if workers die whatever they are given.
        """
        ...


def run_all(
    engine: Engine,
    make: Make[T, R],
    items: Sequence[T],
    attempts: int = ATTEMPTS,
    found: Callable[[Sequence[T]], Iterable[tuple[int, R]]] | None = None,
) -> Generator[tuple[int, R | Failed], None, None]:
    """Works on items until each has a result; closed, it stops the workers.

    Arguments:
        engine: where.
        make: makes a worker.
        items: what it is called with.
        attempts: workers that an item may lose before it counts as failed.
        found: told items without a result, gives (position, result) of those that have one after
            all: a worker may have died between keeping a result and saying so.

    Returns:
        (number, result) of every item exactly once, in any order.
    """
    left = list(range(len(items)))
    for attempt in range(attempts):
        if attempt and left and found is not None:
            kept = dict(found([items[i] for i in left]))
            yield from ((left[position], result) for position, result in kept.items())
            left = [number for position, number in enumerate(left) if position not in kept]
        if not left:
            return
        done: set[int] = set()
        for position, outcome in engine.run(make, [items[i] for i in left]):
            if position not in done:
                done.add(position)
                yield left[position], outcome
        left = [number for position, number in enumerate(left) if position not in done]
    for number in left:
        yield (
            number,
            Failed(
                f"its worker died {attempts} times: killed, perhaps for its memory, or the machine "
                "was lost"
            ),
        )


def engine_of(
    kind: str,
    workers: int | None = None,
    cores: int = 1,
    gpu_share: float | None = None,
    gpus: int = 0,
) -> Engine:
    """The engine that a command line asks for.

    Arguments:
        kind: ``local`` or ``ray``.
        workers: their number; None is one locally, and as many as a cluster has room for.
        cores, gpu_share: see :class:`mgdm_audio.engine_ray.RayEngine`.
        gpus: of this machine, see `LocalEngine`.

    Raises:
        EngineError: if Ray is not installed, or the cluster cannot be used.
        ValueError: for another kind.
    """
    if kind == "local":
        return LocalEngine(workers or 1, gpus if gpus > 1 else 0)
    if kind != "ray":
        raise ValueError(f"the engine must be local or ray, got '{kind}'")
    try:
        from mgdm_audio.engine_ray import RayEngine

        return RayEngine(workers, cores, gpu_share)
    except ImportError as error:
        raise EngineError(
            f"Ray is not installed ({error}): pip install 'mgdm-audio[ray]'"
        ) from error


class Guarded:
    """A worker whose errors are values; it is made at its first call.

    Arguments:
        make: makes the worker.
    """

    def __init__(self, make: Make[Any, Any]) -> None:
        self._make = make
        self._worker: Callable[[Any], Any] | None = None

    def __call__(self, item: Any) -> Any:
        try:
            if self._worker is None:
                self._worker = self._make()
            return self._worker(item)
        except Exception as error:
            text = " ".join(str(error).split())
            return Failed(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class LocalEngine:
    """Processes of this machine.

    Not a ``ProcessPoolExecutor``: there the death of one process ends the pool and all that is
    under way, and here it costs the item that was in it.

    Arguments:
        workers: their number; one is this process itself.
        gpus: among how many GPUs they are shared out; 0 leaves that to the work.
        isolate: whether one worker gets a process of its own too, whose death it survives.

    Raises:
        ValueError: if there are no workers.
    """

    def __init__(self, workers: int = 1, gpus: int = 0, isolate: bool = False) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._workers, self.gpus, self.isolate = workers, gpus, isolate

    @property
    def workers(self) -> int:
        """See `Engine.workers`."""
        return self._workers

    def run(self, make: Make[T, R], items: Sequence[T]) -> Iterator[tuple[int, R | Failed]]:
        """See `Engine.run`; items are begun in order."""
        if self.workers == 1 and not self.isolate:
            worker = Guarded(make)
            for number, item in enumerate(items):
                yield number, worker(item)
            return
        processes = [_Process(make, i, self.gpus) for i in range(min(self.workers, len(items)))]
        try:
            yield from _distribute(processes, items)
        finally:
            for process in processes:
                process.stop()


def _distribute(processes: list[_Process], items: Sequence[T]) -> Iterator[tuple[int, Any]]:
    waiting = iter(enumerate(items))
    busy: dict[Connection, _Process] = {}

    def feed(process: _Process) -> None:
        following = next(waiting, None)
        if following is not None:
            process.send(*following)
            busy[process.connection] = process

    for process in processes:
        feed(process)
    deaths = 0
    while busy:
        ready = set(wait(list(busy)))
        for process in [process for connection, process in busy.items() if connection in ready]:
            del busy[process.connection]
            try:
                answer = process.connection.recv()
            except (EOFError, OSError):  # it died
                process.restart()
                deaths += 1
                if deaths > DEATHS * len(processes):
                    raise EngineError(
                        f"{deaths} worker processes died one after another without a result; see "
                        "above for what they say, and whether memory suffices for so many workers"
                    ) from None
                feed(process)
                continue
            deaths = 0
            feed(process)
            yield answer


class _Process:
    """A process with a worker in it, which is started with its first item."""

    def __init__(self, make: Make[Any, Any], number: int, gpus: int) -> None:
        self._arguments = (make, number, gpus)
        self._process: Any = None
        self.connection: Connection

    def restart(self) -> None:
        """Forgets a process that died; the next item starts another one."""
        self.connection.close()
        self._process.join()
        self._process = None

    def send(self, number: int, item: Any) -> None:
        if self._process is None:
            # A forked child would share the locks of torch's threads; spawn exists everywhere.
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, *self._arguments), daemon=True
            )
            self._process.start()
            theirs.close()  # its death is then the end of what can be read
        try:
            self.connection.send((number, item))
        except OSError:
            return  # it died at once, which reading tells

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()
            self.connection.close()


def _serve(connection: Connection, make: Make[Any, Any], number: int, gpus: int) -> None:
    """What runs in a process."""
    # An interruption from the keyboard reaches all processes; the first one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    if gpus:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = [name for name in names if name] or list(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    worker = Guarded(make)
    while True:
        try:
            index, item = connection.recv()
            connection.send((index, worker(item)))
        except (EOFError, OSError):
            return


def _follow(sentinel: int) -> None:
    """Ends this process with the one that started it, which may be killed."""
    wait([sentinel])
    os._exit(1)
