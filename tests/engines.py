"""Engines that do what a cluster would do to the work it is given."""

from __future__ import annotations

import pickle
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

AHEAD = 2  # items given out before the first result is asked for


@dataclass(frozen=True)
class Pickling:
    """Work, items and results go through pickle; `names` keeps what was mapped."""

    names: list = field(default_factory=list)

    def map(self, work, items):
        self.names.append(getattr(work, "func", work).__name__)
        sent = pickle.dumps(work)
        for item in items:
            yield through_pickle(pickle.loads(sent)(through_pickle(item)))


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


@dataclass(frozen=True)
class Watched:
    """Serial; keeps every item it worked on, and stops like a killed process after `last` of them (None: never)."""

    last: int | None = None
    items: list = field(default_factory=list)

    def map(self, work, items):
        for item in items:
            if len(self.items) == self.last:
                raise KeyboardInterrupt
            self.items.append(item)
            yield work(item)


@dataclass(frozen=True)
class Processes:
    """Every item is worked on in another process."""

    pool: ProcessPoolExecutor

    def map(self, work, items):
        given = deque()
        for item in items:
            given.append(self.pool.submit(work, item))
            if len(given) > AHEAD:
                yield given.popleft().result()
        while given:
            yield given.popleft().result()
