"""One maker for each artifact."""

from __future__ import annotations

import threading
import time

import pytest

from depoison.files import only_maker


def test_one_maker_at_a_time_also_after_a_failure(tmp_path):
    final, inside, most, done = tmp_path / "artifact", [0], [0], []

    def work(number: int) -> None:
        try:
            with only_maker(final):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.01)
                inside[0] -= 1
                if number % 3 == 0:
                    raise RuntimeError("a stage that fails")
        except RuntimeError:
            pass
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(done) == list(range(12))
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_an_error_passes_through_the_lock(tmp_path):
    with pytest.raises(RuntimeError, match="fails"), only_maker(tmp_path / "artifact"):
        raise RuntimeError("fails")
