"""Random steps from a seed, and what is done when one of them goes wrong.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import random
import signal
import time
import traceback
from collections import Counter, deque

from actions import (
    ACTIONS, NotNow, crowd, end_flood, flood, gather, join, leave, plug,
    start_vm, unplug)
from vm import Failure

SHOWN = 30                      # steps that a report has
TAIL = 8                        # lines of each process
SETTLE_EVERY = 20
CALM_EVERY = 8                  # settlings


def describe(problem, where, world, more=()):
    """Returns lines on a failure, and the last ones of all processes."""
    lines = [f'{where}:', *str(problem).splitlines()]
    if not isinstance(problem, Failure):
        lines += traceback.format_exc().splitlines()
    lines += more
    for process in world.lab.processes:
        process.kill(signal.SIGCONT)    # so that it can be ended
        lines += ['', f'[{process.name}]',
                  *process.tail().splitlines()[-TAIL:]]
    return lines


class Schedule:
    """Steps on a world"""

    def __init__(self, world, seed, *, crowds=1, log=None):
        """@crowds: how much more often they come; @log: a file for steps"""
        self.world = world
        self.seed = seed
        self.random = random.Random(seed)
        self.actions = [(weight * (crowds if function is crowd else 1),
                         function) for weight, function in ACTIONS]
        self.log = log
        self.step = 0
        self.recent = deque(maxlen=SHOWN)
        self.done = Counter()
        self.began = time.monotonic()

    def note(self, text):
        now = time.monotonic() - self.began
        self.recent.append(f'{self.step:6} {now:8.2f} s  {text}')

    def one(self):
        """Does one step, which is chosen by its weight."""
        weights, functions = zip(*self.actions)
        self.step += 1
        while True:
            function, = self.random.choices(functions, weights)
            self.note(f'{function.__name__} ...')
            try:
                text = function(self.world, self.random)
            except NotNow:
                self.recent.pop()
                continue
            self.recent.pop()
            self.note(text)
            if self.log:
                print(self.step, text, file=self.log, flush=True)
            self.done[function.__name__] += 1
            break
        self.world.check()

    def settle(self):
        self.note('all is let run until it is quiet')
        self.world.settle()

    def forced(self, function):
        """Does this as often as it is possible."""
        while True:
            try:
                self.note(function(self.world, self.random))
            except NotNow:
                return

    def calm(self):
        """Only the guests stay; then nothing must be left of the others."""
        self.world.resume_all()
        for function in end_flood, leave, unplug, start_vm:
            self.forced(function)
        self.settle()
        self.note('leaks are looked for')
        self.world.check_leaks()

    def warm_up(self):
        """Everybody has been there once before things are counted."""
        for guest in self.world.guests:
            guest.start_vm()
        for guest in self.world.guests:
            guest.wait_vm()
        for function in plug, join, flood:
            self.forced(function)
        self.note(gather(self.world, self.random, self.world.free_ids()))

    def run(self, goes_on):
        """Goes on while goes_on() is true."""
        self.warm_up()
        self.calm()
        rounds = 0
        while goes_on():
            for _ in range(SETTLE_EVERY):
                self.one()
            self.settle()
            rounds += 1
            if rounds % CALM_EVERY == 0:
                self.calm()
        self.calm()

    def report(self, problem):
        """Returns what a person needs to know of a failure."""
        return describe(problem, f'seed {self.seed}, step {self.step}',
                        self.world,
                        ['', f'the last {len(self.recent)} steps:',
                         *self.recent])
