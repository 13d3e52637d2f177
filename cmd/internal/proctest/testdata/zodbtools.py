"""What TestZODBTools does with ZODB itself, beside the tools.

make FILE                  a Data.fs with undone and packed transactions, a deleted object and garbage
history FILE|HOST:PORT     all transactions
current HOST:PORT          all objects, with how many revisions each has
verify HOST:PORT           what zodbverify does with a file, and the number of objects
"""
import hashlib
import logging
import sys
import time

import transaction
import ZODB.FileStorage
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from ZODB.POSException import POSKeyError
from ZODB.utils import load_current, p64, u64
from ZEO.ClientStorage import ClientStorage


def open_storage(where, **kw):
    if ":" in where:
        host, port = where.rsplit(":", 1)
        return ClientStorage((host, int(port)), wait_timeout=20, **kw)
    return ZODB.FileStorage.FileStorage(where, read_only=True)


def make(path):
    storage = ZODB.FileStorage.FileStorage(path)
    db = ZODB.DB(storage)
    conn = db.open()
    root = conn.root()

    def commit(note):
        txn = transaction.get()
        txn.setUser("joe")
        txn.note(note)
        txn.setExtendedInfo("number", 7)
        transaction.commit()

    root["tree"] = OOBTree()
    root["map"] = PersistentMapping()
    commit("begin")
    for i in range(40):
        root["tree"]["key%03d" % i] = PersistentMapping({"data": "x" * 300, "i": i})
        if i % 4 == 0:
            commit("some objects")
    commit("the last of them")
    time.sleep(0.01)
    packed = time.time()
    time.sleep(0.01)
    for i in range(3):
        root["map"]["value"] = i
        commit("value %d" % i)
    storage.pack(packed, lambda *_: [], gc=False)
    db.undo(db.undoLog(0, 1)[0]["id"])
    commit("undone")
    conn.sync()
    assert root["map"]["value"] == 1
    root["garbage"] = PersistentMapping({"n": PersistentMapping()})
    commit("to be garbage")
    del root["garbage"]
    commit("garbage")
    db.close()


def history(where):
    storage = open_storage(where)
    for t in storage.iterator():
        print(t.tid.hex(), t.user, t.description, sorted(t.extension.items()))
        # In the order of their ids: a cluster may have been told of them in another one.
        for r in sorted(t, key=lambda r: r.oid):
            data = r.data and hashlib.sha1(r.data).hexdigest()
            print(" ", u64(r.oid), data, r.data_txn and r.data_txn.hex())
    storage.close()


def current(where):
    storage = open_storage(where)
    for n in range(100):
        oid = p64(n)
        try:
            data, tid = load_current(storage, oid)
        except POSKeyError:
            continue
        print(n, hashlib.sha1(data).hexdigest(), tid.hex(), len(storage.history(oid, size=100)))
    storage.close()


def verify(where):
    from zodbverify.verify import verify_zodb
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    for name in "ZEO", "asyncio":
        logging.getLogger(name).setLevel(logging.ERROR)
    storage = open_storage(where)
    verify_zodb(storage)
    print(len(storage), "objects", storage.getSize() > 0)
    storage.close()


globals()[sys.argv[1]](*sys.argv[2:])
