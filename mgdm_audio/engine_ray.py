"""Workers on a Ray cluster, through Ray Data: one actor a worker, with its share of GPUs.

Items go to the cluster as rows of a dataset, a few at a time as actors become free, and results
come back as they are there. A worker that dies, or whose machine does, is started anew where there
is room, and its items are lost here: :func:`mgdm_audio.engine.run_all` gives them to others, which
bounds how often an item may kill its worker, and waits for no machine to come back.
"""

from __future__ import annotations

__all__ = ["RayEngine"]

import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from mgdm_audio.engine import EngineError, Failed, Guarded, Make, R, T

MOST_BLOCKS = 10_000
"""Ray keeps account of each; a block is what is lost with a worker, and what progress shows."""


class RayEngine:
    """A cluster: the one that RAY_ADDRESS or Ray itself knows, else one of this machine.

    Arguments:
        workers: songs at a time; None is as many as there is room for.
        cores: processor cores of a worker.
        gpu_share: of a GPU that a worker takes; None is 1 where there are any, else 0.

    Attributes:
        gpus: of the cluster, if workers take a share of them.
        dashboard: address of Ray's own page, None if it has none.

    Raises:
        ImportError: if Ray is not installed.
        EngineError: if the cluster cannot be reached, or has no room for a worker.
    """

    def __init__(
        self, workers: int | None = None, cores: int = 1, gpu_share: float | None = None
    ) -> None:
        # Ray tells its makers how it is used unless it is told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        import ray.data

        self._ray: Any = ray
        try:
            # Without an address this is Ray's own convention.
            cluster = ray.init(
                ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(f"the Ray cluster cannot be reached: {error}") from error
        page = cluster.dashboard_url
        self.dashboard: str | None = (page if "://" in page else f"http://{page}") if page else None
        there = ray.cluster_resources()
        share = float(there.get("GPU", 0) > 0) if gpu_share is None else gpu_share
        self.gpus = int(there.get("GPU", 0)) if share else 0
        room = math.floor(there.get("CPU", 0) / cores)
        if share:
            # A worker takes its share of one GPU: of two GPUs, shares of 0.6 are room for two.
            room = min(room, self.gpus * max(1, math.floor(1 / share)))
        if room < 1:
            raise EngineError(
                f"a worker takes {cores} processor cores and {share:g} of a GPU, and the cluster "
                f"has {there.get('CPU', 0):g} and {there.get('GPU', 0):g} in all"
            )
        self._workers = workers or room
        self._cores, self._share = cores, share

    @property
    def workers(self) -> int:
        """See `Engine.workers`."""
        return self._workers

    def run(self, make: Make[T, R], items: Sequence[T]) -> Iterator[tuple[int, R | Failed]]:
        """See `Engine.run`."""
        # Pickled here, so that what a machine cannot import is said of the items.
        pickled = self._ray.cloudpickle.dumps(make)
        rows = [{"number": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
        some = False
        with self._settings():
            try:
                for row in self._dataset(pickled, rows).iter_rows():
                    some = True
                    yield int(row["number"]), pickle.loads(row["result"])
            except self._ray.exceptions.RayError as error:
                if not some:
                    text = " ".join(str(error).split())
                    raise EngineError(f"the Ray cluster gave no result: {text}") from error
                # What is not done is begun anew.

    def _dataset(self, pickled: bytes, rows: list[dict[str, Any]]) -> Any:
        data = self._ray.data
        source = data.from_items(rows, override_num_blocks=max(1, min(len(rows), MOST_BLOCKS)))
        with warnings.catch_warnings():
            # Ray 2.60 says that the last two go away with 2.64, which is why setup.cfg ends there.
            warnings.simplefilter("ignore")
            return source.map_batches(
                _Actor,
                fn_constructor_args=(pickled,),
                batch_size=1,
                compute=data.ActorPoolStrategy(
                    size=min(self.workers, len(rows)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=self._cores,
                num_gpus=self._share,
                max_restarts=-1,
                max_task_retries=0,
            )

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Ray Data goes on without lost items, and leaves the terminal to others."""
        context = self._ray.data.DataContext.get_current()
        before = context.max_errored_blocks, context.enable_progress_bars
        context.max_errored_blocks, context.enable_progress_bars = -1, False
        logger = logging.getLogger("ray.data")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
            context.max_errored_blocks, context.enable_progress_bars = before


class _Actor:
    """A worker in its process; a batch is one item."""

    def __init__(self, pickled: bytes) -> None:
        self._worker = Guarded(partial(_made, pickled))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = [pickle.dumps(self._worker(item)) for item in batch["item"]]
        return {"number": batch["number"], "result": results}


def _made(pickled: bytes) -> Callable[[bytes], Any]:
    """A worker that takes pickled items."""
    worker = pickle.loads(pickled)()
    return lambda item: worker(pickle.loads(item))
