"""The server is killed again and again while two machines exchange doorbells.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import random
import re
import statistics
import struct
import time

from actors import ANSWER_TIMEOUT, MAX_PEERS, output_at
from bare_vm import DOORBELL, check, write
from schedule import describe
from vm import Failure
from world import Finding

# A server that has lived for so many seconds is replaced at once.
LIFE = 1.1
ROUNDS = 10000                  # whose median is taken
SAMPLES = 5                     # medians, with the server and without
RECONNECT = 1.0                 # s
PAUSE = 0.001
FIRST_STATE = 1000
NOBODY = MAX_PEERS - 1          # a number for this ID stops the machines


class Kills:
    """Two machines of a world play ping-pong."""

    def __init__(self, world, seed):
        self.world = world
        self.seed = seed
        self.random = random.Random(seed)
        self.a, self.b = world.guests[:2]
        self.hosts = world.hosts[:2]
        self.doorbells = 0
        self.alone = ROUNDS         # fewest round trips of an outage
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

    def steps(self, one, other):
        """The number goes to the other one, and comes back."""
        hit = (write(2, self.word(one), '#'),
               write(0, DOORBELL, other.id << 16 | 1 + one.id))
        await_other = (f'take {one.peer.idt(1 + other.id):x} 1',
                       check(2, self.word(other), '#'))
        return hit, await_other

    def start_rally(self, *more, repeat=0):
        """0: until stop_rally(), or a failure"""
        for guest in self.a, self.b:
            guest.peer.run(write(2, self.word(guest), 0), 'forget')
        hit, await_other = self.steps(self.b, self.a)
        self.b.peer.start(*await_other, *hit, repeat=repeat)
        hit, await_other = self.steps(self.a, self.b)
        self.a.peer.start(*hit, *await_other, *more, repeat=repeat)

    def finish_rally(self):
        """The first one has had all its answers."""
        for guest in self.a, self.b:
            try:
                guest.peer.finish(ANSWER_TIMEOUT)
            except Failure as problem:
                raise Finding(f'a doorbell is lost, or comes without its '
                              f'number: {problem}') from problem

    def stop_rally(self):
        """The first machine ends its round; the other one waits for the next
        and is stopped."""
        host = self.hosts[0]
        host.run('send', NOBODY, self.number, self.number)
        self.world.words[host.id][NOBODY] = self.number
        try:
            self.a.peer.finish(ANSWER_TIMEOUT)
        except Failure as problem:
            raise Finding('a doorbell is lost, or comes without its number: '
                          f'{problem}') from problem
        self.b.process.send('\n')
        text = self.b.process.line(ANSWER_TIMEOUT)
        if not re.match('ok$|error take: missing 1,', text):
            raise Finding(f'a doorbell comes without its number: {self.b}: '
                          f'{text}')
        self.b.vm.sync()
        played, answered = self.played(self.a), self.played(self.b)
        if played != answered:
            raise Finding(f'{self.a} rang {played} times, {self.b} answered '
                          f'{answered} times')
        self.doorbells += 2 * played
        self.world.sent(self.a, self.b, played)
        self.world.sent(self.b, self.a, played)

    def other(self, guest):
        return self.b if guest is self.a else self.a

    def word(self, guest):
        """Where its number is, in its memory"""
        return output_at(guest.id) + 4 * self.other(guest).id

    def played(self, guest):
        """Returns its number, read from outside."""
        return struct.unpack_from('<I', self.world.outputs[guest.id],
                                  4 * self.other(guest).id)[0]

    def await_back(self, began):
        """Waits until the log says that all are back; returns when each of
        them was, and when the server was ready."""
        wanted = {'ready', *map(str, self.world.present())}
        server = self.world.server
        at = server.log_read
        when = {}
        while True:
            with server.log_path.open() as log:
                log.seek(at)
                text = log.read()
            back = re.findall(r"'(\w+)' .* is back as ID", text)
            back += ['ready'] * ('info: ready' in text)
            now = time.monotonic() - began
            for name in back:
                when.setdefault(name, f'{now:.3f}')
            if wanted <= set(back):
                return when
            if now > ANSWER_TIMEOUT:
                raise Finding(f'only {back} are back after '
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
        end = output_at(self.hosts[0].id) + 4 * NOBODY
        self.start_rally(f'until 2 {end:x} 4 {self.number:x}')
        time.sleep(self.random.random() * LIFE / 4)
        began = time.monotonic()
        before = self.played(self.a)
        server.kill()
        self.state(self.random.choice(self.hosts))
        sender, target = self.random.sample(self.hosts, 2)
        sender.send(target, self.number, self.number)
        world.sent(sender, target, self.number)
        when = self.await_back(began)
        took = time.monotonic() - began
        self.times.append(took)
        if took > RECONNECT:
            self.late += 1
            print(f'# kill {self.number}: back after', *(
                f'{name} {at} s' for name, at in when.items()), flush=True)
        self.next = began + LIFE
        self.alone = min(self.alone, self.played(self.a) - before)
        self.stop_rally()
        if self.alone < 1:
            raise Finding('no round trip until the server was back')
        world.settle()

    def median(self):
        """Returns the median time of a round trip, in cycles."""
        self.start_rally('stamp', repeat=ROUNDS)
        self.finish_rally()
        self.world.sent(self.a, self.b, ROUNDS)
        self.world.sent(self.b, self.a, ROUNDS)
        return self.a.peer.run('times')[1]

    def ratio(self):
        """Returns the medians of round trips with the server, and without."""
        server = self.world.server
        self.median()
        up, down = [], []
        for _ in range(SAMPLES):
            up.append(self.median())
            began = time.monotonic()
            server.take_away()
            down.append(self.median())
            server.give_back()
            self.await_back(began)
            self.world.settle()
            time.sleep(LIFE)
        return statistics.median(up), statistics.median(down)

    def report(self, problem):
        """Returns what a person needs to know of a failure."""
        return describe(problem, f'seed {self.seed}, kill {self.number}',
                        self.world)

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
            f'{count} kills, {self.doorbells} doorbells: 0 lost, 0 wrong '
            f'states, 0 machines ended; at least {self.alone} round trips '
            'until the server was back; all back in '
            f'{1000 * statistics.median(self.times):.0f} ms (median), '
            f'{1000 * max(self.times):.0f} ms (maximum), '
            f'{self.late} times after more than {RECONNECT} s')
        return text
