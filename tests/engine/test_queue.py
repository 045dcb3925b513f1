"""Channels are bounded, drain when closed, and let everybody go when stopped."""

from __future__ import annotations

import threading

from vlmbatch.engine.queue import Channel


def test_a_closed_channel_drains_and_ends() -> None:
    channel: Channel[int] = Channel(3)
    for number in range(3):
        assert channel.put(number)
    channel.close()
    assert not channel.ended
    assert list(channel) == [0, 1, 2]
    assert channel.ended
    assert channel.get() is None


def test_putting_waits_for_room() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (channel.put(1), done.set()))
    thread.start()
    assert not done.wait(0.05)
    assert channel.get() == 0
    assert done.wait(5)
    thread.join()


def test_weight_bounds_it_but_lets_one_entry_in() -> None:
    channel: Channel[bytes] = Channel(10, weight=len, max_weight=8)
    channel.put(bytes(100))
    done = threading.Event()
    thread = threading.Thread(target=lambda: (channel.put(b"x"), done.set()))
    thread.start()
    assert not done.wait(0.05)
    assert len(channel.get() or b"") == 100
    assert done.wait(5)
    thread.join()


def test_a_stop_wakes_those_who_wait_and_drops_the_rest() -> None:
    full: Channel[int] = Channel(1)
    full.put(0)
    empty: Channel[int] = Channel(1)
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(full.put(1))),
        threading.Thread(target=lambda: results.append(empty.get())),
        threading.Thread(target=lambda: results.append(empty.wait())),
    ]
    for thread in threads:
        thread.start()
    full.stop()
    empty.stop()
    for thread in threads:
        thread.join(5)
    assert sorted(map(str, results)) == ["False", "False", "None"]
    assert full.get(wait=False) is None
    assert full.ended


def test_getting_gives_up_in_time() -> None:
    assert Channel(1).get(timeout=0.01) is None
    assert Channel(1).get(wait=False) is None


def test_an_entry_that_waits_can_be_removed_and_makes_room() -> None:
    channel: Channel[bytes] = Channel(10, weight=len, max_weight=8)
    channel.put(b"12345678")
    done = threading.Event()
    thread = threading.Thread(target=lambda: (channel.put(b"x"), done.set()))
    thread.start()
    assert channel.remove(b"12345678")
    assert done.wait(5)
    thread.join()
    assert not channel.remove(b"12345678")
    assert channel.get() == b"x"
