"""An application on BTrees, over ZEO.

zeoapp.py setup HOST:PORT...          make the objects
zeoapp.py work NAME CACHE HOST:PORT...  insert and count until stdin ends
zeoapp.py check HOST:PORT...          print what is there, as JSON, and compare
                                      what the workers were given with the history

CACHE is the directory of a cache file, or empty. A worker prints for every
transaction whose outcome is of interest one line: "ok KEY" if it was acknowledged,
"unknown KEY" if the connection was lost while it was finished; "begin KEY" before
each, "bad TEXT" if something must not be. At the end, "retries N". What a worker is
given, by the server or by its cache, goes to a file in the directory LOADS.
"""
import json
import os
import sys
import threading
import time

import BTrees.check
import transaction
from BTrees.Length import Length
from BTrees.OOBTree import OOBTree
from ZEO.ClientStorage import ClientStorage
from ZEO.Exceptions import ClientDisconnected
from ZODB import DB
from ZODB.POSException import ConflictError


class Storage(ClientStorage):
    """Notes whether a transaction came to its end."""
    finishing = False
    seen = None

    def loadBefore(self, oid, before):
        found = super().loadBefore(oid, before)
        if self.seen is not None and found is not None:
            self.seen.write(f'{oid.hex()} {before.hex()} {found[1].hex()}\n')
        return found

    def tpc_finish(self, *args, **kw):
        self.finishing = True
        return super().tpc_finish(*args, **kw)


def connect(addresses, **kw):
    pairs = []
    for a in addresses:
        host, port = a.rsplit(':', 1)
        pairs.append((host, int(port)))
    deadline = time.time() + 60
    while True:
        storage = Storage(pairs, wait_timeout=60, max_disconnect_poll=1, **kw)
        try:
            return storage, DB(storage)
        except ClientDisconnected:  # the server was killed between the connection and the first load
            storage.close()
            if time.time() > deadline:
                raise


def say(*args):
    print(*args, flush=True)


def setup(*addresses):
    storage, db = connect(addresses)
    root = db.open().root()
    root['tree'], root['length'] = OOBTree(), Length()
    transaction.commit()
    db.close()


def work(name, cache, *addresses):
    kw = {'client': name, 'var': cache} if cache else {}
    storage, db = connect(addresses, **kw)
    storage.seen = open(os.path.join(os.environ['LOADS'], name), 'w', 1)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    conn = db.open()
    retries = n = 0
    last = None
    while not stop.is_set():
        key = '%06d-%s' % (n // 4, name + '.' + str(n))  # beside those of the others
        n += 1
        say('begin', key)
        while not stop.is_set():
            storage.finishing = False
            try:
                transaction.begin()
                tree, length = conn.root()['tree'], conn.root()['length']
                if last is not None and last not in tree:
                    say('bad', 'worker %s does not see its own %s' % (name, last))
                    last = None
                tree[key] = name
                length.change(1)
                transaction.commit()
            except (ConflictError, ClientDisconnected) as e:
                transaction.abort()
                retries += 1
                if storage.finishing:
                    if isinstance(e, ConflictError):
                        say('bad', 'conflict in tpc_finish: %r' % e)
                    say('unknown', key)
                    break
                time.sleep(.05)
            except Exception as e:
                say('bad', '%s %s, finishing %s: %r' % (name, key, storage.finishing, e))
                retries += 1
                try:
                    transaction.abort()
                except Exception as e:
                    say('bad', 'abort: %r' % e)
                if storage.finishing:
                    say('unknown', key)
                    break
                time.sleep(.5)
            else:
                say('ok', key)
                last = key
                break
    say('retries', retries)
    db.close()


def check(*addresses):
    until = time.monotonic() + 60
    while True:
        try:
            return check_once(*addresses)
        except ClientDisconnected:  # a server may still be away
            if time.monotonic() > until:
                raise
            time.sleep(1)


def check_once(*addresses):
    storage, db = connect(addresses)
    root = db.open().root()
    tree = root['tree']
    tree._check()
    BTrees.check.check(tree)
    print(json.dumps({'length': root['length'](), 'keys': list(tree), 'stale': stale(storage)}))
    db.close()


def stale(storage):
    """The loads that did not give what was current at their time."""
    found = []
    for name in sorted(os.listdir(os.environ['LOADS'])):
        with open(os.path.join(os.environ['LOADS'], name)) as f:
            lines = {line for line in f if line.endswith('\n')}
        for line in sorted(lines):
            oid, before, serial = map(bytes.fromhex, line.split())
            truth = storage.loadBefore(oid, before)
            if truth is None or truth[1] != serial:
                found.append(f'{name}: object {oid.hex()} before {before.hex()}: {serial.hex()}, not {truth and truth[1].hex()}')
    return found


{'setup': setup, 'work': work, 'check': check}[sys.argv[1]](*sys.argv[2:])
