"""What can happen on a link, one step after the other.

An action chooses by a random generator, and only depends on what happened
before: the same seed makes the same steps. It raises NotNow if there is nobody
to do it, and returns what it did as text.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os

from actors import MAX_PEERS, VECTORS, WAYS, Host
from raw import RawClient, hello
from world import FLOODER_ID

ACTIONS = []                    # (weight, function)
MOST_IN_CROWD = 6
STORM = 400
FULL = 100


class NotNow(Exception):
    """This action is not possible at the moment."""


def action(weight):
    def register(function):
        ACTIONS.append((weight, function))
        return function
    return register


def one_of(random, candidates):
    candidates = list(candidates)
    if not candidates:
        raise NotNow
    return random.choice(candidates)


def value(random):
    return random.randrange(1, 1 << 31)


def pattern(random):
    return random.randrange(1, 1 << 63)


def served(world):
    """Nobody can join while the server is stopped."""
    if world.server.stopped:
        raise NotNow


@action(30)
def send(world, random):
    """One doorbell or some"""
    sender = one_of(random, world.able())
    target = one_of(random, (a for a in world.present() if a is not sender))
    first = value(random)
    last = first + random.choice((0, 0, 0, 4))
    sender.send(target, first, last)
    world.sent(sender, target, last)
    return f'{sender} sends {first} to {last} to {target}'


@action(6)
def begin_storm(world, random):
    """Doorbells while other things happen"""
    sender = one_of(random, world.able())
    target = one_of(random, (a for a in world.present() if a is not sender))
    last = random.randrange(100, STORM)
    last += last == world.words[sender.id][target.id]
    sender.start_send(target, 1, last)
    sender.busy = target.id, last
    world.sent(sender, target, last)
    return f'{sender} begins to send 1 to {last} to {target}'


@action(6)
def end_storm(world, random):
    actor = one_of(random, (a for a in world.present()
                            if a.busy and not a.stopped and
                            not getattr(a, 'paused', False)))
    world.finish_storm(actor)
    return f'{actor} has sent all'


@action(15)
def state(world, random):
    actor = one_of(random, world.able())
    new = random.choice((0, 1, value(random)))
    actor.set_state(new)
    return f'{actor} sets state {new}'


@action(8)
def fill(world, random):
    actor = one_of(random, world.able())
    new = pattern(random)
    actor.fill(new)
    world.filled(actor, new)
    return f'{actor} fills its sections with {new:#x}'


@action(4)
def trespass(world, random):
    guest = one_of(random, (g for g in world.guests if g.able()))
    other = one_of(random, (i for i in range(MAX_PEERS) if i != guest.id))
    guest.trespass(other, value(random))
    return f'{guest} writes to memory of ID {other}'


@action(8)
def join(world, random):
    served(world)
    host = one_of(random, (h for h in world.hosts if not h.present))
    host.start_join(host.id)
    host.finish_join()
    return f'{host} joins as {host.id}'


@action(6)
def leave(world, random):
    host = one_of(random, (h for h in world.hosts if h.able()))
    how = one_of(random, WAYS)
    world.leaves(host)
    host.end(how)
    return f'{host} leaves by {how}'


@action(2)
def kill_any(world, random):
    """Also a stopped one, or one in the middle of a storm"""
    host = one_of(random, (h for h in world.hosts if h.present))
    world.leaves(host)
    host.end('SIGKILL')
    return f'{host} is killed'


@action(3)
def stop(world, random):
    actor = one_of(random, (a for a in world.present() if not a.stopped))
    actor.stop()
    return f'{actor} is stopped'


@action(3)
def resume(world, random):
    actor = one_of(random, (a for a in world.present() if a.stopped))
    actor.resume()
    return f'{actor} continues'


@action(2)
def pause(world, random):
    guest = one_of(random, (g for g in world.guests
                            if g.present and not g.stopped))
    guest.pause(not guest.paused)
    return f'QMP {"stop" if guest.paused else "cont"} of {guest}'


@action(3)
def mask(world, random):
    """Interrupts come when the vectors are unmasked."""
    guest = one_of(random, (g for g in world.guests if g.able()))
    guest.mask(not guest.masked)
    return f'{guest} {"" if guest.masked else "un"}masks its vectors'


@action(2)
def reset(world, random):
    guest = one_of(random, (g for g in world.guests
                            if g.vm and not g.stopped and not g.paused))
    world.deaf(guest)
    if guest.busy:
        world.dumb(guest)
    guest.reset()
    return f'{guest} is reset'


@action(3)
def plug(world, random):
    served(world)
    guest = one_of(random, (g for g in world.guests if g.hot and g.vm and
                            not (g.present or g.stopped or g.paused)))
    guest.plug()
    return f'{guest} gets its device'


@action(3)
def unplug(world, random):
    guest = one_of(random, (g for g in world.guests if g.hot and g.able()))
    world.leaves(guest)
    guest.unplug()
    return f'{guest} loses its device'


@action(1)
def kill_vm(world, random):
    guest = one_of(random, (g for g in world.guests if g.vm))
    world.leaves(guest)
    guest.kill()
    return f'{guest} is killed'


@action(8)
def start_vm(world, random):
    served(world)
    guest = one_of(random, (g for g in world.guests if not g.vm))
    guest.start_vm()
    guest.wait_vm()
    return f'{guest} is started'


@action(2)
def stop_server(world, random):
    served(world)
    world.server.stop()
    return 'the server is stopped'


@action(6)
def resume_server(world, random):
    if not world.server.stopped:
        raise NotNow
    world.server.resume()
    return 'the server continues'


def live(world, random, peer):
    """A peer of a crowd does this and that."""
    done = []
    for _ in range(random.randrange(4)):
        what = random.choice(('state', 'send', 'fill', 'heard'))
        done.append(what)
        if what == 'state':
            peer.set_state(value(random))
        elif what == 'fill':
            new = pattern(random)
            peer.fill(new)
            world.filled(peer, new)
        else:
            other = one_of(random, (a for a in world.present()
                                    if a is not peer))
            pair = (peer, other)
            if what == 'heard':
                pair = (other, peer) if other.able() else pair
            first = value(random)
            pair[0].send(pair[1], first, first)
            world.sent(*pair, first)
    return done


def supervised(world):
    if not world.server.supervised:
        raise NotNow


@action(2)
def kill_server(world, _):
    supervised(world)
    world.server.kill()
    return 'the server is killed'


@action(1)
def upgrade_server(world, _):
    supervised(world)
    served(world)
    world.server.upgrade()
    return 'the server is upgraded'


def gather(world, random, count):
    """So many peers join at once, live for a moment, and end somehow."""
    text = []
    world.crowd = [Host(f'crowd{n}', world) for n in range(count)]
    for peer in world.crowd:
        peer.start_join()
    for peer in world.crowd:
        peer.finish_join()
    for peer in world.crowd:
        text.append(f'{peer}: {" ".join(live(world, random, peer))}')
    ways = [one_of(random, WAYS) for _ in world.crowd]
    for peer, how in zip(world.crowd, ways):
        world.leaves(peer)
        peer.start_end(how)
        text.append(f'{peer} {how}')
    for peer, how in zip(world.crowd, ways):
        peer.finish_end(how)
    world.crowd = []
    return f'a crowd of {count}; ' + ', '.join(text)


@action(6)
def crowd(world, random):
    served(world)
    count = random.randrange(1, 1 + MOST_IN_CROWD)
    # the server may not have noticed yet that earlier ones are dead
    if count > world.free_ids() // 2 or not world.present():
        raise NotNow
    return gather(world, random, count)


@action(2)
def strangers(world, random):
    """Connections that end before they are peers"""
    served(world)
    text = hello(FLOODER_ID, VECTORS)
    parts = [random.choice((0, 1, 8, 60, len(text) - 1, len(text)))
             for _ in range(random.randrange(1, 6))]
    clients = [RawClient(world.socket) for _ in parts]
    for client, length in zip(clients, parts):
        client.socket.sendall(text[:length])
    for client in clients:
        client.close()
    return f'connections that end after {parts} bytes of HELLO'


@action(2)
def flood(world, random):
    """A peer that asks for much and reads no answer"""
    served(world)
    if world.flooder:
        raise NotNow
    world.flooder = RawClient(world.socket)
    for fd in world.flooder.join(FLOODER_ID, VECTORS):
        os.close(fd)
    sent = world.flooder.flood(FLOODER_ID, VECTORS, 0.1)
    return ('a peer that reads nothing floods the server with '
            f'{"less" if sent < FULL else "more"} than {FULL} requests')


@action(6)
def end_flood(world, random):
    if not world.flooder:
        raise NotNow
    world.flooder.close()
    world.flooder = None
    world.lives += 1
    return 'it is gone'
