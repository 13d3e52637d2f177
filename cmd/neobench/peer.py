"""Measure a ZODB storage through its own Python code; prints one JSON object.

  peer.py scan FILE            rebuild of the index of a Data.fs, and a check of it
  peer.py storage TARGET [N [TXNS [LOADS [PID...]]]]
                               N processes commit ten objects of 2 kB, then load cold;
                               with the CPU time of other processes meanwhile, of all
                               together and of each
  peer.py conflicts TARGET [N [TXNS [HOT]]]
                               N processes commit ten objects of 2 kB, one of which is
                               one of HOT shared ones: they conflict and try again
  peer.py read TARGET          iterate over all transactions
  peer.py write TARGET BYTES   commit BYTES in transactions of a hundred objects
  peer.py copy FILE            copyTransactionsFrom, to FILE.copy
  peer.py imported DATABASE N  wait until table trans of the SQLite database has N rows
TARGET: neo:NAME@HOST:PORT | zeo:HOST:PORT | fs:PATH
"""
import json, multiprocessing, os, random, sys, time


def scan(path):
    from ZODB.FileStorage import FileStorage
    from ZODB.FileStorage.FileStorage import read_index
    from ZODB.fsIndex import fsIndex
    size = os.path.getsize(path)
    with open(path, 'rb') as f:
        start = time.perf_counter()
        read_index(f, path, fsIndex(), {})
        rebuild = time.perf_counter() - start
    s = FileStorage(path, read_only=True)
    start = time.perf_counter()
    for t in s.iterator():
        for r in t:
            pass
    check = time.perf_counter() - start
    return dict(rebuild_MB_s=size / rebuild / 1e6, check_MB_s=size / check / 1e6)


def connect(target, read_only=False):
    kind, _, rest = target.partition(':')
    if kind == 'neo':
        from neo.client.Storage import Storage
        name, _, masters = rest.partition('@')
        return Storage(master_nodes=masters, name=name, compress=False, cache_size=1)
    if kind == 'zeo':
        from ZEO.ClientStorage import ClientStorage
        host, _, port = rest.rpartition(':')
        return ClientStorage((host, int(port)), cache_size=1, wait_timeout=60, read_only=read_only)
    from ZODB.FileStorage import FileStorage
    return FileStorage(rest)


def cpu(pids):
    ticks = 0
    for pid in pids:
        with open('/proc/%d/stat' % pid) as f:
            fields = f.read().rpartition(') ')[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf('SC_CLK_TCK')


def client(target, n, txns, loads, barrier, out):
    from ZODB.Connection import TransactionMetaData
    r = random.Random(n)
    s = connect(target)
    data = [b'\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03C\xff' + r.randbytes(255) + b'.' + r.randbytes(1700)
            for _ in range(16)]
    oids = [[s.new_oid() for _ in range(10)] for _ in range(txns)]
    barrier.wait()
    start, spent = time.perf_counter(), time.process_time()
    latency = []
    for group in oids:
        t0 = time.perf_counter()
        t = TransactionMetaData()
        s.tpc_begin(t)
        for i, oid in enumerate(group):
            s.store(oid, b'\0' * 8, data[i], '', t)
        s.tpc_vote(t)
        s.tpc_finish(t)
        latency.append(time.perf_counter() - t0)
    commit, commit_spent = time.perf_counter() - start, time.process_time() - spent
    barrier.wait()
    barrier.wait()
    flat = [oid for group in oids for oid in group]
    start, spent = time.perf_counter(), time.process_time()
    load_latency = []
    for _ in range(loads):
        t0 = time.perf_counter()
        if s.loadBefore(r.choice(flat), b'\x7f' + b'\xff' * 7) is None:
            raise SystemExit('an object is missing')
        load_latency.append(time.perf_counter() - t0)
    load, load_spent = time.perf_counter() - start, time.process_time() - spent
    barrier.wait()
    out.put((commit, load, latency, load_latency, commit_spent, load_spent))
    s.close()


# What a server leaves for later, such as the moves of committed records to where
# they stay, belongs to the commits: it has this time, in seconds.
AFTER = 1.5


def storage(target, n=1, txns=200, loads=2000, *pids):
    barrier, out = multiprocessing.Barrier(n + 1, timeout=600), multiprocessing.Queue()
    ps = [multiprocessing.Process(target=client, args=(target, i, txns // n, loads // n, barrier, out)) for i in range(n)]
    for p in ps:
        p.start()
    barrier.wait()
    each = [(pid, cpu([pid])) for pid in pids]
    barrier.wait()
    if pids:
        time.sleep(AFTER)
    between = [(pid, cpu([pid])) for pid in pids]
    barrier.wait()
    barrier.wait()
    end = [(pid, cpu([pid])) for pid in pids]
    results = [out.get(timeout=600) for _ in ps]
    for p in ps:
        p.join()

    def p50(i):
        values = sorted(v for r in results for v in r[i])
        return values[len(values) // 2] * 1e6
    commits, loaded = txns // n * n, loads // n * n
    answer = dict(commits_s=commits / max(r[0] for r in results), loads_s=loaded / max(r[1] for r in results),
                  commit_us=p50(2), load_us=p50(3),
                  client_commit_cpu_us=sum(r[4] for r in results) / commits * 1e6,
                  client_load_cpu_us=sum(r[5] for r in results) / loaded * 1e6)
    for what, before, after, count in ('commit', each, between, commits), ('load', between, end, loaded):
        answer[what + '_cpu_us'] = (sum(c for _, c in after) - sum(c for _, c in before)) / count * 1e6
        for (pid, b), (_, a) in zip(before, after):
            answer['%s_cpu_us_%d' % (what, pid)] = (a - b) / count * 1e6
    return answer


def contender(target, n, txns, hot, barrier, out):
    from ZODB.Connection import TransactionMetaData
    from ZODB.POSException import ConflictError
    r = random.Random(n)
    s = connect(target)
    head = b'\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03C\xff'
    data = [head + r.randbytes(255) + b'.' + r.randbytes(1700) for _ in range(16)]
    oids = [[s.new_oid() for _ in range(9)] for _ in range(txns)]
    conflicts = 0
    barrier.wait()
    start = time.perf_counter()
    for group in oids:
        while True:
            shared = r.choice(hot)
            serial = s.loadBefore(shared, b'\x7f' + b'\xff' * 7)[1]
            t = TransactionMetaData()
            s.tpc_begin(t)
            try:
                for i, oid in enumerate(group):
                    s.store(oid, b'\0' * 8, data[i], '', t)
                s.store(shared, serial, data[9], '', t)
                s.tpc_vote(t)
            except ConflictError:
                s.tpc_abort(t)
                conflicts += 1
                continue
            s.tpc_finish(t)
            break
    out.put((time.perf_counter() - start, conflicts))
    s.close()


def conflicts(target, n=4, txns=200, hot=8):
    from ZODB.Connection import TransactionMetaData
    s = connect(target)
    shared = [s.new_oid() for _ in range(hot)]
    t = TransactionMetaData()
    s.tpc_begin(t)
    for oid in shared:
        s.store(oid, b'\0' * 8, b'\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03}.', '', t)
    s.tpc_vote(t)
    s.tpc_finish(t)
    s.close()
    barrier, out = multiprocessing.Barrier(n, timeout=600), multiprocessing.Queue()
    ps = [multiprocessing.Process(target=contender, args=(target, i, txns // n, shared, barrier, out)) for i in range(n)]
    for p in ps:
        p.start()
    results = [out.get(timeout=600) for _ in ps]
    for p in ps:
        p.join()
    return dict(commits_s=txns // n * n / max(r[0] for r in results), conflicts=sum(r[1] for r in results))


def read(target):
    s = connect(target, read_only=True)
    n = sum(len(r.data or b'') for t in s.iterator() for r in t)
    s.close()
    return dict(bytes=n)


def write(target, size):
    from ZODB.Connection import TransactionMetaData
    s = connect(target)
    head = b'\x80\x03cpersistent.mapping\nPersistentMapping\n.\x80\x03B'
    body = random.Random(0).randbytes(8 << 10)
    data = head + len(body).to_bytes(4, 'little') + body + b'.'
    written = 0
    while written < size:
        t = TransactionMetaData()
        s.tpc_begin(t)
        for _ in range(100):
            s.store(s.new_oid(), b'\0' * 8, data, '', t)
        s.tpc_vote(t)
        s.tpc_finish(t)
        written += 100 * len(data)
    s.close()
    return dict(bytes=written)


def copy(path):
    from ZODB.FileStorage import FileStorage
    source = FileStorage(path, read_only=True)
    start = time.perf_counter()
    destination = FileStorage(path + '.copy', create=True)
    destination.copyTransactionsFrom(source)
    destination.close()
    return dict(copy_MB_s=os.path.getsize(path) / (time.perf_counter() - start) / 1e6)


def imported(path, transactions):
    import sqlite3
    db = sqlite3.connect('file:%s?mode=ro' % path, timeout=60, uri=True)
    last, since = -1, time.monotonic()
    while True:
        n, = db.execute('SELECT COUNT(*) FROM trans').fetchone()
        if n >= transactions:
            return dict(transactions=n)
        if n > last:
            last, since = n, time.monotonic()
        elif time.monotonic() > since + 60:
            raise SystemExit('%d of %d transactions are imported, and none for a minute' % (n, transactions))
        time.sleep(.1)


if __name__ == '__main__':
    what, *args = sys.argv[1:]
    print(json.dumps({'scan': scan, 'storage': storage, 'conflicts': conflicts, 'read': read, 'write': write,
                      'copy': copy, 'imported': imported}[what](args[0], *map(int, args[1:]))))
