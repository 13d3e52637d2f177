"""Databases that are mounted into each other, for the tests of package merge.

make DIR: writes main.fs, catalog.fs, old.fs and elsewhere.fs. old.fs has pickles as of
Python 2: of protocol 2, with object ids and names that are str. Prints which objects are
mount points, and what they lead to.

compare DIR SHIFTS: walks merged.fs from its root, beside the originals.

compare DIR SHIFTS ADDRESS: the same with what the ZEO server there has, as it was when the last
transaction of the originals was committed.

edit DIR ADDRESS NAME: changes what that server has, through all mount points. It
undoes and resolves conflicts, of revisions before and after that transaction. NAME is 0, 1 and 2.

check DIR ADDRESS NAMES: looks for all that these edits have made.
"""
import io
import json
import os
import sys

import pickletools
import transaction
from BTrees.IOBTree import IOBTree
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree, OOTreeSet
from persistent import Persistent
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from ZODB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from ZODB.utils import p64, u64

MERGED = ['main', 'catalog', 'old']


class Item(Persistent):
    def __init__(self, **kw):
        self.__dict__.update(kw)


class Mount(Persistent):
    """What Products.ZODBMountPoint has where another database is mounted."""

    def __init__(self, database):
        self.database = database


class Made(Persistent):
    """An object whose references have no class."""

    def __new__(cls, *args):
        return Persistent.__new__(cls)

    def __getnewargs__(self):
        return (self.name,)

    def __init__(self, name):
        self.name = name


sys.modules['mounted'] = sys.modules['__main__']  # the name in the pickles
for cls in Item, Mount, Made:
    cls.__module__ = 'mounted'


def open_all(directory, names):
    databases = {}
    for name, path in names:
        DB(FileStorage(os.path.join(directory, path)), databases=databases, database_name=name)
    return databases


def fill(conn, name, others):
    """Gives a database an application with 300 objects, and mount points to others."""
    root = conn.root()
    app = root['app'] = Item(title=name, empty=None)
    app.items = OOBTree()
    for i in range(200):
        app.items['key%d' % i] = Item(n=i, text='%s %d' % (name, i), nested={'list': [i, (i, None)]})
    app.numbers = IOBTree({i: Item(n=i) for i in range(100)})
    app.set = OOTreeSet('word%d' % i for i in range(100))
    app.map = PersistentMapping(a=app.items['key1'], b=PersistentList([app.items['key2'], app.items['key3']]))
    app.long = LOBTree({2 ** 40: 'x'})
    app.made = Made(name)
    transaction.commit()
    # An id that is plain data too, before and after a reference.
    item = app.items['key4']
    app.shared = {'before': item._p_oid, 'object': item, 'after': item._p_oid}
    app.weak = WeakRef(app.items['key5'])
    app.cycle = app
    transaction.commit()
    app.mounts = {other: Mount(other) for other in others}
    transaction.get().note('mounts of ' + name)
    transaction.commit()
    return app


def refer(apps):
    """References between the databases, in all ways that ZODB has."""
    for name, app in apps.items():
        app.far = [Item(mount=m) for n, a in apps.items() if n != name for m in a.mounts.values()]
        for other, its in apps.items():
            if other != name:
                setattr(app, 'to_' + other, [its, its.items['key7'], its.items['key8'], its.items['key7']])
                setattr(app, 'made_in_' + other, its.made)
                setattr(app, 'weak_to_' + other, WeakRef(its.items['key9']))
                for k, mount in its.mounts.items():
                    setattr(app, 'mount_in_%s_of_%s' % (other, k), mount)
    transaction.commit()
    # Changes, so that there is a history.
    for n in range(20):
        for app in apps.values():
            app.items['key%d' % (n * 3)].changed = n
            app.items['new%d' % n] = Item(like=app.items['key%d' % n])
            del app.items['key%d' % (100 + n)]
        transaction.commit()
    # Changes of one object only, which can be undone whatever else is changed.
    for n in range(3):
        for app in apps.values():
            app.items['key%d' % (90 + n)].alone = n
        transaction.commit()
    # A historical connection to others has one to this, which must not end before them.
    apps['elsewhere'].last = True
    transaction.commit()


def python2(data):
    """Makes a record what Python 2 would have written."""
    out, rest = b'', data
    for _ in range(2):
        f = io.BytesIO(rest)
        ops = [(op, arg, pos) for op, arg, pos in pickletools.genops(f)]
        ends = [pos for _, _, pos in ops[1:]] + [f.tell()]
        for (op, arg, pos), end in zip(ops, ends):
            b = rest[pos:end]
            if op.name == 'PROTO':
                b = b'\x80\x02'
            elif op.name == 'SHORT_BINBYTES':
                if max(arg) < 128:  # or else Python 3 could not read it
                    b = b'U' + b[1:]
            elif op.name == 'BINUNICODE' and len(arg) < 256 and arg.isascii():
                b = b'U' + bytes([len(arg)]) + arg.encode()
            out += b
        rest = rest[f.tell():]
    assert not rest
    return out


def convert(source, path):
    dest = FileStorage(path)
    for t in source.iterator():
        dest.tpc_begin(t, t.tid, t.status)
        for r in t:
            dest.restore(r.oid, r.tid, r.data and python2(r.data), '', r.data_txn, t)
        dest.tpc_vote(t)
        dest.tpc_finish(t)
    dest.close()


def make(directory):
    files = [(n, n + '.fs') for n in MERGED + ['elsewhere']]
    files[2] = 'old', 'old3.fs'
    databases = open_all(directory, files)
    conn = databases['main'].open()
    others = {'main': ['catalog', 'old'], 'catalog': ['old'], 'old': ['main'], 'elsewhere': []}
    apps = {n: fill(conn.get_connection(n), n, others[n]) for n in others}
    refer(apps)
    result = []
    for n in MERGED:
        app = apps[n]
        result.append({
            'Name': n,
            'Target': u64(app._p_oid) if n != 'main' else 0,
            'Mounts': {k: u64(m._p_oid) for k, m in app.mounts.items()},
        })
    conn.close()
    convert(databases['old'].storage, os.path.join(directory, 'old.fs'))
    for db in databases.values():
        db.close()
    print(json.dumps({'Databases': result}))


class Comparison:
    def __init__(self, mine, merged, shifts):
        self.mine, self.merged, self.shifts = mine, merged, shifts
        self.todo, self.seen = [], set()
        self.objects, self.mounts, self.weak = {}, 0, 0

    def fail(self, where, *what):
        sys.exit('%s: %s' % (where, ' '.join(map(repr, what))))

    def mounted(self, mount):
        conn = self.mine.get_connection(mount.database)
        return conn.root() if mount.database == 'main' else conn.root()['app']

    def same_object(self, a, b, where):
        if type(a) is Mount and a._p_jar.db().database_name in self.shifts:
            a = self.mounted(a)
            self.mounts += 1
        name = a._p_jar.db().database_name
        if name not in self.shifts:  # it has stayed where it is
            if (b._p_jar.db().database_name, b._p_oid) != (name, a._p_oid):
                self.fail(where, name, a._p_oid, 'became', b._p_jar.db().database_name, b._p_oid)
            return
        if b._p_jar is not self.merged:
            self.fail(where, 'is in', b._p_jar)
        if u64(b._p_oid) != u64(a._p_oid) + self.shifts[name]:
            self.fail(where, name, u64(a._p_oid), 'became', u64(b._p_oid))
        if b._p_oid not in self.seen:
            self.seen.add(b._p_oid)
            self.todo.append((a, b, where))

    def same(self, a, b, where):
        if isinstance(a, WeakRef):
            self.weak += 1
            if type(b) is not WeakRef:
                self.fail(where, a, b)
            a, b = a(), b()
        if isinstance(a, Persistent):
            return self.same_object(a, b, where)
        if isinstance(a, type):
            if a is not b:
                self.fail(where, a, b)
            return
        if type(a) is not type(b):
            self.fail(where, a, b)
        if isinstance(a, (list, tuple)):
            if len(a) != len(b):
                self.fail(where, a, b)
            for i, (x, y) in enumerate(zip(a, b)):
                self.same(x, y, '%s[%d]' % (where, i))
        elif isinstance(a, dict):
            if set(a) != set(b):
                self.fail(where, sorted(a), sorted(b))
            for k in a:
                self.same(a[k], b[k], '%s[%r]' % (where, k))
        elif a != b:
            self.fail(where, a, b)

    def step(self):
        a, b, where = self.todo.pop()
        if type(a) is not type(b):
            self.fail(where, type(a), type(b))
        a._p_activate()
        b._p_activate()
        if a._p_serial != b._p_serial:
            self.fail(where, a._p_serial, b._p_serial)
        self.same(a.__getstate__(), b.__getstate__(), where)
        name = a._p_jar.db().database_name
        self.objects[name] = self.objects.get(name, 0) + 1

    def run(self, a, b):
        self.same_object(a, b, 'root')
        while self.todo:
            self.step()


def remote(server, databases):
    """Opens what a ZEO server has."""
    from ZEO.ClientStorage import ClientStorage
    host, port = server.rsplit(':', 1)
    storage = ClientStorage((host, int(port)), wait_timeout=60, cache_size=4 << 20)
    return DB(storage, databases=databases, database_name='merged')


def last_tid(databases):
    return max(databases[n].storage.lastTransaction() for n in MERGED)


def compare(directory, shifts, server=None):
    originals = open_all(directory, [(n, n + '.fs') for n in MERGED + ['elsewhere']])
    together = {'elsewhere': originals['elsewhere']}
    now = {}
    if server:
        remote(server, together)
        now['at'] = last_tid(originals)
    else:
        DB(FileStorage(os.path.join(directory, 'merged.fs'), read_only=True), databases=together, database_name='merged')
    c = Comparison(originals['main'].open(), together['merged'].open(**now), shifts)
    c.run(c.mine.root(), c.merged.root())
    # What is found at a mount point of another database, by a connection that does not yet
    # know of which class it is.
    for name in MERGED:
        for item in c.mine.get_connection(name).root()['app'].far:
            fresh = Comparison(c.mine, together['merged'].open(**now), shifts)
            fresh.same_object(item, fresh.merged.get(p64(u64(item._p_oid) + shifts[name])), 'far of ' + name)
            fresh.step()
            fresh.step()
    # At an earlier time too.
    at = list(originals['main'].storage.iterator())[-8].tid
    old = Comparison(originals['main'].open(at=at), together['merged'].open(at=at), shifts)
    for name in MERGED:
        a = old.mine.get_connection(name)
        if not a.before:
            sys.exit('%s is not at an earlier time' % name)
    old.run(old.mine.root(), old.merged.root())
    print(json.dumps({'Objects': c.objects, 'Mounts': c.mounts, 'Weak': c.weak, 'Old': sum(old.objects.values())}))
    for db in together.values():
        db.close()


def applications(conn):
    """The three applications, by way of mount points alone."""
    main = conn.root()['app']
    catalog = main.mounts['catalog']
    apps = {'main': main, 'catalog': catalog, 'old': catalog.mounts['old']}
    for name, app in apps.items():
        assert app.title == name, (app.title, name)
    return apps


def edit(directory, server, name):
    originals = open_all(directory, [(n, n + '.fs') for n in MERGED + ['elsewhere']])
    db = remote(server, {'elsewhere': originals['elsewhere']})
    mine, one, two = originals['main'].open(), transaction.TransactionManager(), transaction.TransactionManager()
    conn, other = db.open(one), db.open(two)
    end = last_tid(originals)
    assert db.storage.lastTransaction() >= end

    # Changes of the sources are undone, and that is undone again.
    log = {b64(e['id']): e['id'] for e in db.undoInfo(0, 1000)}
    for n in MERGED:
        app = mine.get_connection(n).root()['app']
        key, its = 'key9' + name, applications(conn)[n]
        assert its.items[key].alone == app.items[key].alone == int(name)
        db.undo(log[app.items[key]._p_serial], one.get())
        one.commit()
        item = applications(conn)[n].items[key]
        assert not hasattr(item, 'alone') and item._p_serial > end, n
        db.undo(db.undoInfo(0, 1)[0]['id'], one.get())
        one.commit()
        assert applications(conn)[n].items[key].alone == int(name)
        assert len(db.history(item._p_oid, size=100)) >= 4, n
        if name != '0':
            continue  # the trees have changed since
        assert app.items['key57'].changed == 19
        db.undo(log[app.items['key57']._p_serial], one.get())
        one.commit()
        its = applications(conn)[n]
        assert not hasattr(its.items['key57'], 'changed') and 'new19' not in its.items and its.items['key119'].n == 119, n
        db.undo(db.undoInfo(0, 1)[0]['id'], one.get())
        one.commit()
        its = applications(conn)[n]
        assert its.items['key57'].changed == 19 and its.items['new19'].like is its.items['key19'] and 'key119' not in its.items, n

    # Both have what is in the sources, and change different keys of one bucket.
    two.begin()
    for n, app in applications(other).items():
        app.numbers[0], app.set.keys(), list(app.items.items())
    for n, app in applications(conn).items():
        app.items['key1x' + name] = Item(by=name, near=app.items['key1'], far=applications(conn)['old'].items['key2'])
        app.numbers[1000 + len(app.numbers)] = app.items['key1x' + name]
        app.map[name] = WeakRef(app.items['key3'])
    one.commit()
    for n, app in applications(other).items():
        assert 'key1x' + name not in app.items
        app.items['key2x' + name] = Item(by=name, far=applications(other)['catalog'])
        app.set.add('set' + name)
    two.commit()
    # Without a resolution it is a conflict.
    one.begin(), two.begin()
    for c, text in (conn, 'first'), (other, 'second'):
        for app in applications(c).values():
            app.items['key11'].text = text
    one.commit()
    try:
        two.commit()
    except ConflictError:
        two.abort()
    else:
        sys.exit('a conflict was not found')
    for n, app in applications(other).items():
        assert app.items['key11'].text == 'first', n
    conn.close(), other.close()
    db.close()


def b64(text):
    """The transaction id in the id of an undo log."""
    import base64
    return base64.decodebytes(text + b'\n')[:8]


def check(directory, server, names):
    db = remote(server, open_all(directory, [('elsewhere', 'elsewhere.fs')]))
    conn = db.open()
    apps = applications(conn)
    for n, app in apps.items():
        assert app.items['key57'].changed == 19
        app.items._check()
        for name in names:
            a, b = app.items['key1x' + name], app.items['key2x' + name]
            assert a.by == b.by == name and 'set' + name in app.set
            assert a.near is app.items['key1'] and a.far is apps['old'].items['key2'] and b.far is apps['catalog']
            assert a in app.numbers.values() and app.map[name]() is app.items['key3']
    db.close()


if sys.argv[1] == 'make':
    make(sys.argv[2])
elif sys.argv[1] == 'compare':
    compare(sys.argv[2], json.loads(sys.argv[3]), *sys.argv[4:])
elif sys.argv[1] == 'edit':
    edit(*sys.argv[2:])
else:
    check(*sys.argv[2:])
