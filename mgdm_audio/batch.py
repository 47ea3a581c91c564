"""Jobs of several recordings through one sampler, in batches that fill the device.

Which jobs share a batch never decides what they give: every job has its own randomness, and no
sampler lets batch items see each other (on some processors the last bits of a matrix product
depend on the size of the batch).
"""

from __future__ import annotations

__all__ = ["Draw", "run"]

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from mgdm_audio.song import Job, Song

Draw = Callable[[list[Job], Callable[[int], None]], tuple[Tensor, int, int]]
"""Stems (B, K, size) of B jobs that go together, network calls and gradients; tells its callback
how many planned calls of each job are made."""


class _Cancelled(BaseException):
    """What a progress callback raised, on its way through the sampler."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def run(
    draw: Draw, songs: Iterable[Song], batch: int
) -> Iterator[tuple[Song, BaseException | None]]:
    """Samples the windows of songs; the first songs first, as many at a time as fill a batch.

    When memory does not suffice, batches are halved. An error of one song does not stop the others.

    Arguments:
        draw: see `Draw`.
        songs: scanned songs; one is taken when there is room for it.
        batch: jobs that are drawn together at most.

    Returns:
        Each song when all its windows are there, or with the error that stopped it.
    """
    waiting = iter(songs)
    active: list[Song] = []
    apart: list[Song] = []
    try:
        while True:
            # Or its traceback would keep the tensors of the batch that failed.
            error: BaseException | None = None
            # Each song of such a batch by itself, once: the one that it failed for fails alone, and
            # the others fill batches again.
            jobs: list[Job] = []
            while apart and not jobs:
                jobs = apart.pop(0).ready(batch)
            if not jobs:
                for song in active:
                    jobs += song.ready(batch - len(jobs))
                while len(jobs) < batch:
                    following = next(waiting, None)
                    if following is None:
                        break
                    if following.complete:
                        yield following, None
                        continue
                    active.append(following)
                    jobs += following.ready(batch - len(jobs))
            if not jobs:
                for song in active:
                    yield song, RuntimeError("windows were lost; run again with --resume")
                return
            jobs = _alike(jobs)
            error = _draw(draw, jobs)
            drawn = list(dict.fromkeys(job.song for job in jobs))
            # Of a batch that failed in the end, some may be there.
            for song in drawn:
                if song.complete:
                    active.remove(song)
                    yield song, None
            if error is None:
                continue
            if _is_out_of_memory(error) and len(jobs) > 1:
                batch = len(jobs) // 2
            elif len(drawn) > 1:
                apart = [song for song in drawn if not song.complete]
            else:
                active.remove(jobs[0].song)
                yield jobs[0].song, _explained(error)
    except _Cancelled as cancelled:
        raise cancelled.error from None


def _draw(draw: Draw, jobs: list[Job]) -> BaseException | None:
    """Draws jobs and hands the stems to their songs, or gives the error."""
    places: dict[Song, list[int]] = {}
    for place, job in enumerate(jobs):
        places.setdefault(job.song, []).append(place)

    def progress(done: int) -> None:
        try:
            for song, own in places.items():
                song.report(done * len(own))
        except BaseException as error:
            raise _Cancelled(error) from None

    try:
        stems, calls, vjps = draw(jobs, progress)
        for song, own in places.items():
            for place in own:
                song.finish(jobs[place], stems[place])
            spent = (counted * len(own) // len(jobs) for counted in (calls, vjps))
            song.spent(len(own), *spent)
    except Exception as error:
        # The traceback keeps what the sampler held, which the next try has to have room for.
        return error.with_traceback(None) if _is_out_of_memory(error) else error
    return None


def _alike(jobs: list[Job]) -> list[Job]:
    """Those of the jobs that can go with the first one."""
    first = jobs[0]
    return [
        job
        for job in jobs
        if len(job.mix) == len(first.mix)
        and (job.known is None) == (first.known is None)
        and (job.song is first.song or first.song.settings.other is None)
    ]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def _explained(error: BaseException) -> BaseException:
    if not _is_out_of_memory(error):
        return error
    return MemoryError(
        f"out of memory with one window at a time; use a shorter window (--window), or another "
        f"device (--device cpu). {error}"
    )
