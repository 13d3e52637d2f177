"""Compare Data.fs files, opened by FileStorage, with what a ZEO server shows of them.

compare.py HOST:PORT ENCODING NAME=PATH...

Every storage NAME of the server must show the same as the file PATH. The
encoding is what the server is expected to propose, Z or M.
"""
import os
import shutil
import sys
import tempfile

from ZEO.ClientStorage import ClientStorage
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError
from ZODB.utils import maxtid, p64, u64, z64


def result(f, *args):
    try:
        return f(*args)
    except POSKeyError:
        return 'POSKeyError'


def extension(t):
    try:
        return shown(t.extension)
    except Exception:  # not even FileStorage can read it
        return {}


def transactions(s, *bounds):
    return [(t.tid, t.status, t.user, t.description, extension(t),
             [(r.oid, r.tid, r.data, r.data_txn) for r in t])
            for t in s.iterator(*bounds)]


def shown(v):
    """Values as they can be sent."""
    if isinstance(v, dict):
        return {k: shown(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return tuple(shown(x) for x in v)
    if isinstance(v, int) and not isinstance(v, bool) and v.bit_length() > 63:
        return str(v)  # msgpack has no such ints
    if v is None or isinstance(v, (bool, int, float, str, bytes)):
        return v
    return '<object>'


def log(entries):
    return [{k: shown(v) for k, v in e.items()} for e in entries]


def compare(name, addr, path, expected):
    with tempfile.TemporaryDirectory() as d:
        copy = os.path.join(d, 'Data.fs')
        shutil.copy(path, copy)
        fs = FileStorage(copy, read_only=True)
        zeo = ClientStorage(addr, storage=name, read_only=True, wait=True, wait_timeout=20)
        checked = 0

        def same(what, f, *args):
            nonlocal checked
            b = result(getattr(zeo, f), *args)
            try:
                a = result(getattr(fs, f), *args)
            except Exception as e:
                print('%s: FileStorage cannot do %s%r: %r' % (path, f, args, e))
                return
            if what:
                a, b = what(a), what(b)
            if a != b:
                sys.exit('%s: %s%r: FileStorage %r, ZEO %r' % (path, f, args, a, b))
            checked += 1

        got = zeo._server.client.protocol.protocol_version[:1]
        assert got == expected.encode(), got
        assert zeo.isReadOnly()
        same(None, 'lastTransaction')
        all = transactions(fs)
        assert transactions(zeo) == all, (path, all, transactions(zeo))
        tids = [t[0] for t in all]
        for first, last in ((tids[0], tids[-1]), (tids[1], None), (None, tids[-2])) if len(tids) > 2 else ():
            assert transactions(zeo, first, last) == transactions(fs, first, last)
        # Deleted objects are passed over.
        alive = [(oid, r) for oid, r in ((o, result(fs.load, o, '')) for o in sorted(fs._index))
                 if r != 'POSKeyError']
        oid = None
        for i, (o, (data, serial)) in enumerate(alive):
            following = alive[i + 1][0] if i + 1 < len(alive) else None
            got = zeo.record_iternext(oid)
            assert got == (o, serial, data, following), (path, oid, got)
            oid = following
            checked += 1
        times = [z64, maxtid] + tids + [p64(u64(t) + 1) for t in tids]
        oids = {r[0] for t in all for r in t[5]} | {p64(0x7777)}
        for oid in sorted(oids):
            if result(fs.load, oid, '') != 'POSKeyError':
                same(None, 'getTid', oid)
            same(lambda h: h if h == 'POSKeyError' else log(h), 'history', oid, 100)
            for t in times:
                same(None, 'loadBefore', oid, t)
            for t in tids:
                same(None, 'loadSerial', oid, t)
        same(log, 'undoLog')
        same(log, 'undoLog', 1, 3)
        same(log, 'undoLog', 0, -2)
        for e in zeo.undoLog(0, 3):
            same(log, 'undoInfo', 0, -20, {'user_name': e['user_name']})
        same(log, 'undoInfo', 0, -20, {'user_name': b'nobody'})
        zeo.close()
        fs.close()
        return checked


def main():
    addr, encoding = sys.argv[1:3]
    host, _, port = addr.rpartition(':')
    for arg in sys.argv[3:]:
        name, _, path = arg.partition('=')
        print(path, compare(name, (host, int(port)), path, encoding))


main()
