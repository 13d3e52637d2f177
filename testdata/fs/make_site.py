#!/usr/bin/env python3
"""Write site.fs, the sample database of a small web site: make_site.py OUT

Needs ZODB 6 and BTrees. The clock and all that is random are fixed: the same
versions write the same bytes.
"""
import os
import random
import sys
import time

OUT = sys.argv[1]
random.seed(20260105)
clock = [1767600000.0]          # 2026-01-05 08:00:00 UTC
time.time = lambda: clock[0]

import transaction                                      # noqa: E402
from BTrees.IOBTree import IOBTree                      # noqa: E402
from BTrees.Length import Length                        # noqa: E402
from BTrees.OOBTree import OOBTree, OOTreeSet           # noqa: E402
from persistent.list import PersistentList              # noqa: E402
from persistent.mapping import PersistentMapping        # noqa: E402
from ZODB.DB import DB                                  # noqa: E402
from ZODB.FileStorage import FileStorage                # noqa: E402

for suffix in '', '.index', '.lock', '.tmp':
    if os.path.exists(OUT + suffix):
        os.remove(OUT + suffix)

storage = FileStorage(OUT)
db = DB(storage)
connection = db.open()
root = connection.root()
people = ['alice', 'bob', 'chloé', 'dmitri', 'eve']
syllables = ['ba', 'ko', 'li', 'ma', 'ne', 'po', 'ra', 'si', 'tu', 've', 'za', 'chi']


def word():
    return ''.join(random.choice(syllables) for _ in range(random.randint(1, 4)))


def text(n):
    return ' '.join(word() for _ in range(n)).capitalize() + '.'


def commit(who, what, **extension):
    clock[0] += random.uniform(20, 9000)
    t = transaction.get()
    t.setUser(who)
    t.note(what)
    for k, v in sorted(extension.items()):
        t.setExtendedInfo(k, v)
    transaction.commit()


root['site'] = site = PersistentMapping(title='Example site', pages=OOBTree(), settings=PersistentMapping())
root['catalog'] = catalog = PersistentMapping(
    by_author=OOBTree(), by_word=OOBTree(), paths=IOBTree(), count=Length())
root['log'] = PersistentList()
commit('admin', 'create the site')

number = 0
pages = []


def index(n, page):
    catalog['paths'][n] = page['path']
    for key, name in (page['author'], 'by_author'), *((w, 'by_word') for w in page['title'].lower().split()):
        rows = catalog[name].get(key)
        if rows is None:
            catalog[name][key] = rows = OOTreeSet()
        rows.insert(page['path'])
    catalog['count'].change(1)


for day in range(330):
    action = random.random()
    who = random.choice(people)
    if action < .35 or len(pages) < 5:
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            number += 1
            page = PersistentMapping(
                path='/%s/%s-%d' % (word(), word(), number), title=text(3), body=text(random.randint(20, 200)),
                author=who, created=clock[0], comments=PersistentList())
            if pages and random.random() < .4:
                page['related'] = random.choice(pages)
            site['pages'][page['path']] = page
            pages.append(page)
            index(number, page)
        commit(who, 'add %s' % page['path'], request={'path': page['path'], 'method': 'POST'})
    elif action < .72:
        page = random.choice(pages)
        page['body'] = text(random.randint(20, 200))
        page['modified'] = clock[0]
        commit(who, 'edit %s' % page['path'])
    elif action < .90:
        page = random.choice(pages)
        page['comments'].append(PersistentMapping(who=who, what=text(random.randint(3, 30))))
        commit(who, 'comment on %s' % page['path'])
    elif action < .94:
        site['settings'][word()] = random.choice([True, None, 3.5, 42, 'blue', ('a', 1), frozenset([1])])
        commit('admin', 'change a setting')
    elif action < .97 and len(pages) > 20:
        page = pages.pop(random.randrange(len(pages)))
        del site['pages'][page['path']]
        commit(who, 'remove %s' % page['path'])
    else:
        last = db.undoLog(0, 1)[0]
        db.undo(last['id'])
        commit('admin', 'undo: %s' % last['description'])
        connection.sync()
        pages = list(site['pages'].values())

transaction.begin()
orphan = PersistentMapping(note='a draft that was never published')
connection.add(orphan)
root['draft'] = orphan
commit('eve', 'start a draft')
db.undo(db.undoLog(0, 1)[0]['id'])
commit('eve', 'undo: start a draft')

connection.close()
db.close()
for suffix in '.index', '.lock', '.tmp':
    if os.path.exists(OUT + suffix):
        os.remove(OUT + suffix)
