"""The server is killed again and again while two machines exchange doorbells.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import random
import re
import statistics
import time

from actors import ANSWER_TIMEOUT, output_at
from bare_vm import DOORBELL, check, write
from schedule import describe
from vm import Failure
from world import Finding

# A server that has lived for so many seconds is replaced at once.
LIFE = 1.1
ROUNDS = 300                    # to find out how long one takes
SAMPLES = 5                     # medians of round trips, with and without server
RECONNECT = 1.0                 # s
PAUSE = 0.001
FIRST_STATE = 1000


class Kills:
    """Two machines of a world play ping-pong."""

    def __init__(self, world, seed):
        self.world = world
        self.random = random.Random(seed)
        self.a, self.b = world.guests[:2]
        self.hosts = world.hosts[:2]
        self.rounds = ROUNDS
        self.number = 0
        self.next = 0               # when the server may be killed
        self.times = []             # s, until all are back
        self.late = 0

    def start(self):
        for guest in self.a, self.b:
            guest.start_vm()
        for guest in self.a, self.b:
            guest.wait_vm()
        for host in self.hosts:
            host.start_join(host.id)
            host.finish_join()
        self.world.settle()
        began = time.monotonic()
        self.start_rally()
        self.finish_rally()
        took = (time.monotonic() - began) / self.rounds
        self.rounds = max(int(LIFE / took), 1)

    def steps(self, one, other):
        """The number goes to the other one, and comes back."""
        hit = (write(2, output_at(one.id) + 4 * other.id, '#'),
               write(0, DOORBELL, other.id << 16 | 1 + one.id))
        await_other = (f'take {one.peer.idt(1 + other.id):x} 1',
                       check(2, output_at(other.id) + 4 * one.id, '#'))
        return hit, await_other

    def start_rally(self, *more):
        hit, await_other = self.steps(self.b, self.a)
        self.b.peer.run('forget')
        self.a.peer.run('forget')
        self.b.peer.start(*await_other, *hit, repeat=self.rounds)
        hit, await_other = self.steps(self.a, self.b)
        self.a.peer.start(*hit, *await_other, *more, repeat=self.rounds)

    def finish_rally(self):
        """Each has seen one interrupt and the right number in each round."""
        values = []
        for guest in self.a, self.b:
            try:
                values.append(guest.peer.finish(ANSWER_TIMEOUT))
            except Failure as problem:
                raise Finding(f'a doorbell is lost, or comes without its '
                              f'number: {problem}') from problem
        self.world.sent(self.a, self.b, self.rounds)
        self.world.sent(self.b, self.a, self.rounds)
        return values[0]

    def await_back(self, began):
        """Waits until the log says that all are back."""
        wanted = {actor.id for actor in self.world.present()}
        server = self.world.server
        at = server.log_read
        while True:
            with server.log_path.open() as log:
                log.seek(at)
                back = re.findall(r'is back as ID (\d+)', log.read())
            if wanted <= {int(peer_id) for peer_id in back}:
                return
            if time.monotonic() > began + ANSWER_TIMEOUT:
                raise Finding(f'only IDs {back} are back after '
                              f'{ANSWER_TIMEOUT} s')
            time.sleep(PAUSE)

    def state(self, actor):
        actor.set_state(FIRST_STATE + self.random.randrange(1 << 30))

    def kill(self):
        """One kill in the middle of a rally, and of changes of states"""
        self.number += 1
        world, server = self.world, self.world.server
        server.check()
        held_back = self.random.random() < 0.5
        if held_back:
            server.stop()           # what peers say now, nobody has read
        for actor in self.random.sample([self.a, self.b, *self.hosts], 2):
            self.state(actor)
        self.start_rally()
        time.sleep(self.random.random() * LIFE / 4)
        began = time.monotonic()
        server.kill()
        self.state(self.random.choice(self.hosts))
        sender, target = self.random.sample(self.hosts, 2)
        sender.send(target, self.number, self.number)
        world.sent(sender, target, self.number)
        self.await_back(began)
        took = time.monotonic() - began
        self.times.append(took)
        self.late += took > RECONNECT
        self.next = began + LIFE
        self.finish_rally()
        world.settle()

    def median(self):
        """Returns the median time of a round trip, in cycles."""
        self.start_rally('stamp')
        self.finish_rally()
        return self.a.peer.run('times')[1]

    def ratio(self):
        """Returns the medians of round trips with the server, and without."""
        server = self.world.server
        self.median()
        up, down = [], []
        rounds, self.rounds = self.rounds, min(self.rounds, 20000)
        for _ in range(SAMPLES):
            up.append(self.median())
            began = time.monotonic()
            server.take_away()
            down.append(self.median())
            server.give_back()
            self.await_back(began)
            self.world.settle()
            time.sleep(LIFE)
        self.rounds = rounds
        return statistics.median(up), statistics.median(down)

    def report(self, problem):
        """Returns what a person needs to know of a failure."""
        return describe(problem, f'kill {self.number}', self.world)

    def run(self, count):
        """Returns a summary."""
        self.start()
        up, down = self.ratio()
        self.world.baseline.clear()
        self.world.check_leaks()
        text = [f'median round trip: {up:.0f} cycles with the server, '
                f'{down:.0f} without: ratio {down / up:.3f}']
        for _ in range(count):
            time.sleep(max(self.next - time.monotonic(), 0))
            self.kill()
        self.world.check_leaks()
        text.append(
            f'{count} kills, {2 * count * self.rounds} doorbells: 0 lost, 0 '
            f'wrong states, 0 machines ended; all back in '
            f'{1000 * statistics.median(self.times):.0f} ms (median), '
            f'{1000 * max(self.times):.0f} ms (maximum), '
            f'{self.late} times after more than {RECONNECT} s')
        return text
