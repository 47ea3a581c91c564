"""Jobs of several songs: batches, order, errors, memory."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from mgdm_audio import batch
from mgdm_audio.recording import ArraySource
from mgdm_audio.song import Settings, Song
from mgdm_audio.store import MemoryStore

SETTINGS = {"stems": 2, "rate": 8000, "level": 0.1, "window": 4096, "overlap": 1024}


def make(seed, length=10_000, rate=8000, told=None, **settings):
    x = 0.1 * np.random.default_rng(seed).standard_normal((1, length)).astype(np.float32)
    song = Song(
        ArraySource(x, rate), Settings(**{**SETTINGS, **settings}), seed, MemoryStore(), 5, told
    )
    song.scan()
    return song


def identity(jobs, progress):
    """Half of the mix in each stem; a window that is told something hands it on."""
    progress(5)
    stems = torch.stack([job.mix.expand(2, -1) / 2 for job in jobs])
    return stems, 5 * len(jobs), 0


def result(song):
    return torch.cat([stems for stems, _ in song.output()], dim=-1)


@pytest.mark.parametrize("seams", ["condition", "fade"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_every_song_comes_out_whole_in_any_batch(seams, size):
    sizes = []

    def draw(jobs, progress):
        sizes.append(len(jobs))
        return identity(jobs, progress)

    songs = [make(i, length, seams=seams) for i, length in enumerate((10_000, 3000, 4096, 30_000))]
    done = dict(batch.run(draw, songs, size))
    assert set(done) == set(songs)
    assert not any(done.values())
    assert max(sizes) <= size
    assert sum(sizes) == sum(song.jobs for song in songs)
    for song in songs:
        x = torch.from_numpy(song.source.samples)
        assert torch.equal(result(song), x.expand(2, *x.shape) / 2)  # bit for bit
        assert song.calls == 5 * song.jobs


def test_windows_of_a_song_wait_for_the_one_before_and_are_told_it():
    told = []

    def draw(jobs, progress):
        told.extend((job.index, job.known) for job in jobs)
        return identity(jobs, progress)

    song = make(0, 10_000)
    list(batch.run(draw, [song], 8))
    assert [index for index, _ in told] == [0, 1, 2]
    assert told[0][1] is None
    for index, known in told[1:]:
        start = song.plan.starts[index]
        end = song.plan.fades()[index - 1][1]
        mix = torch.from_numpy(song.source.samples)[0, start:end] * (0.1 / 0.1)
        assert known.shape == (2, end - start)
        share = known.sum(0) / mix
        assert share.std() / share.mean() < 1e-3  # the mix at the prior's level, shared out


def test_songs_share_batches():
    seen = []

    def draw(jobs, progress):
        seen.append({id(job.song) for job in jobs})
        return identity(jobs, progress)

    list(batch.run(draw, [make(i) for i in range(3)], 3))
    assert max(map(len, seen)) == 3


def test_an_error_of_one_song_does_not_stop_the_others():
    bad = make(1)

    def draw(jobs, progress):
        if any(job.song is bad for job in jobs):
            raise FloatingPointError("not finite")
        return identity(jobs, progress)

    songs = [make(0), bad, make(2)]
    done = dict(batch.run(draw, songs, 3))
    assert isinstance(done[bad], FloatingPointError)
    assert done[songs[0]] is None
    assert done[songs[2]] is None


@pytest.mark.parametrize("bad", [0, 3, 7])
def test_a_song_that_fails_costs_the_others_few_draws(bad):
    """Eight songs of ten windows, each told the one before: ten draws if none fails."""
    songs = [make(i, 4096 + 9 * 3072) for i in range(8)]
    draws, held = [], []

    def draw(jobs, progress):
        # Nor is there anything left of what the sampler held when it failed for several songs.
        assert not any(ref() is not None for ref in held)
        draws.append(len(jobs))
        if any(job.song is songs[bad] for job in jobs):
            tensors = torch.zeros(3)
            if len(jobs) > 1:
                held.append(weakref.ref(tensors))
            raise FloatingPointError("not finite")
        return identity(jobs, progress)

    done = dict(batch.run(draw, songs, 8))
    assert [song for song in songs if done[song] is not None] == [songs[bad]]
    assert len(held) == 1
    assert draws == [8, *[1] * 8, *[7] * 9]


@pytest.mark.parametrize(
    ("kind", "text"), [(MemoryError, ""), (RuntimeError, "CUDA out of memory. Tried ...")]
)
def test_too_little_memory_halves_the_batch_and_names_the_option(kind, text):
    sizes, held = [], []

    def draw(jobs, progress):
        # What the sampler held when it failed does not take the room of the next try.
        assert not any(ref() is not None for ref in held)
        sizes.append(len(jobs))
        tensors = torch.zeros(len(jobs))
        if len(jobs) > 2:
            held.append(weakref.ref(tensors))
            raise kind(text)
        return identity(jobs, progress)

    assert not any(dict(batch.run(draw, [make(0, 40_000, seams="fade")], 8)).values())
    assert sizes[:3] == [8, 4, 2]
    assert len(held) == 2

    def never(jobs, progress):
        raise kind(text)

    ((_, last),) = batch.run(never, [make(0)], 4)
    assert "--window" in str(last)


@pytest.mark.parametrize("cause", [KeyboardInterrupt, RuntimeError, ValueError])
def test_what_a_callback_raises_comes_out_as_it_is(cause):
    def told(done, total):
        raise cause("stop")

    with pytest.raises(cause, match="stop"):
        list(batch.run(identity, [make(0, told=told), make(1)], 2))


def test_average_is_drawn_with_seeds_of_its_own_and_reported():
    seen, reports = set(), []

    def draw(jobs, progress):
        seen.update(job.seed for job in jobs)
        return identity(jobs, progress)

    song = make(0, told=lambda *x: reports.append(x), average=3)
    list(batch.run(draw, [song], 2))
    assert len(seen) == song.jobs == 9
    assert reports == sorted(reports)
    assert reports[-1] == (45, 45)


def test_damaged_windows_are_made_again():
    song = make(0, 10_000)
    list(batch.run(identity, [song], 1))
    for name in ("window-000001", "known-000001-0000"):
        song.store.drop(name)
    song.resume()
    assert not song.complete
    # The second window needs to be told the first one again, which is therefore drawn again.
    assert [job.index for job in song.ready(5)] == [0]
    list(batch.run(identity, [song], 1))
    assert song.complete


class Full(MemoryStore):
    """A store that once has no room for a window."""

    def __init__(self, error):
        super().__init__()
        self.errors = [error]

    def put(self, name, value):
        if name.startswith("window") and self.errors:
            raise self.errors.pop()
        super().put(name, value)


def test_a_song_whose_window_cannot_be_kept_is_told():
    songs = [make(0, 3000), make(1, 3000)]
    songs[1].store = Full(OSError("no space"))
    found = dict(batch.run(identity, songs, 2))
    assert found[songs[0]] is None
    # The batch is drawn again song by song, and there is room by then.
    assert found[songs[1]] is None
    assert [song.calls for song in songs] == [5, 5]
    songs = [make(0, 3000)]
    songs[0].store = Full(OSError("no space"))
    ((song, error),) = batch.run(identity, songs, 1)
    assert song is songs[0]
    assert "no space" in str(error)
    songs = [make(0, 3000, average=2)]
    songs[0].store = Full(MemoryError())
    assert list(batch.run(identity, songs, 2)) == [(songs[0], None)]
    x = torch.from_numpy(songs[0].source.samples)
    assert torch.equal(result(songs[0]), x.expand(2, *x.shape) / 2)


@pytest.mark.parametrize("settings", [{}, {"average": 4}, {"seams": "fade"}, {"overlap": 2048}])
def test_what_is_kept_is_foreseen(settings):
    """With a batch of one song's samples; the most that there is at any time."""
    song = make(0, 30_000, **settings)
    most = []
    put = song.store.put

    def counted(name, value):
        put(name, value)
        most.append(sum(x.shape[-1] for x in song.store._values.values()))

    song.store.put = counted
    list(batch.run(identity, [song], song.settings.average))
    assert 0.8 * song.kept < max(most) <= song.kept
