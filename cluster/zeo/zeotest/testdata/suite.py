"""Run tests that ZEO and ZODB ship against servers that a test program starts.

suite.py CONTROL [--msgpack] [--without INTERFACE] [--expect-failure NAME]... CLASS...

CONTROL is the host:port of the program: it takes one JSON object per line and
answers with one. INTERFACE is one that the storage does not have. CLASS is MODULE:CLASS, or MODULE:CLASS.METHOD for one test. The
exit status is 0 if all tests pass but those expected to fail, which must fail.
"""
import argparse
import collections
import json
import logging
import os
import re
import socket
import sys
import time
import unittest

import ZEO._forker
import ZEO.tests.forker

logging.disable(logging.NOTSET)


class Control:

    def __init__(self, addr):
        host, _, port = addr.rpartition(':')
        self.sock = socket.create_connection((host, int(port)))
        self.file = self.sock.makefile('rw')

    def __call__(self, **request):
        self.file.write(json.dumps(request) + '\n')
        self.file.flush()
        answer = json.loads(self.file.readline())
        if answer.get('error'):
            raise Exception(answer['error'])
        return answer


def option(text, name, default=None):
    m = re.search(r'^\s*%s:?\s+(.*?)\s*$' % name, text, re.M)
    return m.group(1) if m else default


def true(text):
    return str(text).lower() in ('1', 'true', 'yes', 'on')


def make_start(control, msgpack):

    def start_zeo_server(storage_conf=None, zeo_conf=None, port=None,
                         keep=False, path='Data.fs', protocol=None,
                         blob_dir=None, suicide=True, debug=False,
                         threaded=False, start_timeout=33, name=None,
                         log=None, show_config=False):
        if not storage_conf:
            storage_conf = '<filestorage>\npath %s\n</filestorage>' % path
        if zeo_conf is None or isinstance(zeo_conf, dict):
            # A server that is started again wants its port, which no outgoing
            # connection must have got meanwhile.
            port = port or ZEO.tests.forker.get_port()
            z = ZEO._forker.ZEOConfig(('127.0.0.1', port), log=log)
            z.__dict__.update(zeo_conf or {})
            zeo_conf = z
        log = getattr(zeo_conf, 'log', None) and zeo_conf.logpath
        zeo = str(zeo_conf)
        mapping = 'mappingstorage' in storage_conf
        db = option(storage_conf, 'path')
        answer = control(
            op='start',
            address=re.sub(r':\s+', ':', option(zeo, 'address')),
            path='' if mapping else os.path.abspath(db),
            create=mapping or true(option(storage_conf, 'create')),
            mapping=mapping,
            storage_read_only=true(option(storage_conf, 'read-only')),
            read_only=true(option(zeo, 'read-only')),
            invalidation_queue_size=int(option(zeo, 'invalidation-queue-size', 0)),
            invalidation_age=float(option(zeo, 'invalidation-age', 0)),
            transaction_timeout=float(option(zeo, 'transaction-timeout', 0)),
            msgpack=msgpack or true(option(zeo, 'msgpack')),
            certificate=option(zeo, 'certificate', ''),
            key=option(zeo, 'key', ''),
            authenticate=option(zeo, 'authenticate', ''),
            log=os.path.abspath(log) if log else '',
        )
        host, _, port = answer['address'].rpartition(':')

        def stop(stop_timeout=99):
            control(op='stop', id=answer['id'], keep=bool(keep))

        return (host, int(port)), stop

    return start_zeo_server


class Result(unittest.TestResult):

    def __init__(self):
        super().__init__()
        self.times = collections.Counter()

    def startTest(self, test):
        super().startTest(test)
        self.started = time.time()

    def stopTest(self, test):
        super().stopTest(test)
        self.times[test.id()] = time.time() - self.started


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('control')
    parser.add_argument('--msgpack', action='store_true')
    parser.add_argument('--expect-failure', action='append', default=[])
    parser.add_argument('--without', action='append', default=[])
    parser.add_argument('classes', nargs='+')
    args = parser.parse_args()

    from ZEO.tests.testZEO import FileStorageTests
    FileStorageTests._expected_interfaces = tuple(
        i for i in FileStorageTests._expected_interfaces
        if i[1] not in args.without)

    start = make_start(Control(args.control), args.msgpack)
    ZEO._forker.start_zeo_server = start
    ZEO.tests.forker.start_zeo_server = start

    suite = unittest.TestSuite()
    for name in args.classes:
        module, _, name = name.partition(':')
        name, _, method = name.partition('.')
        cls = getattr(__import__(module, fromlist=[name]), name)
        if method:
            suite.addTest(cls(method))
            continue
        seen = set()
        for prefix in 'check', 'test':
            loader = unittest.TestLoader()
            loader.testMethodPrefix = prefix
            for test in loader.loadTestsFromTestCase(cls):
                if test.id() not in seen:
                    seen.add(test.id())
                    suite.addTest(test)

    result = Result()
    began = time.time()
    suite.run(result)
    failed = {}
    for test, trace in result.failures + result.errors:
        failed.setdefault(test.id(), []).append(trace)
    # ids are module.Class.method
    expected = {i for i in failed
                if i.rsplit('.', 1)[-1] in args.expect_failure
                or '.'.join(i.rsplit('.', 2)[-2:]) in args.expect_failure}
    for i, traces in sorted(failed.items()):
        if i not in expected:
            print('FAIL', i)
            print('\n'.join(traces))
    missing = set(args.expect_failure) - {i.rsplit('.', 1)[-1] for i in expected} \
        - {'.'.join(i.rsplit('.', 2)[-2:]) for i in expected}
    for name in sorted(missing):
        print('PASS', name, 'but a failure was expected')
    for test, reason in result.skipped:
        print('SKIP', test.id(), reason)
    slow = ', '.join('%s %.1fs' % (i.rsplit('.', 1)[-1], t)
                     for i, t in result.times.most_common(5))
    print('%d tests, %d failures, %d of them expected, %.1fs (%s)' % (
        result.testsRun, len(failed), len(expected), time.time() - began, slow))
    sys.stdout.flush()
    os._exit(1 if missing or len(failed) != len(expected) else 0)


main()
