"""A site of several databases, for the tests of package plan.

site.py DIR [zope | dense]: writes main.fs, catalog.fs, archive.fs and shelf.fs as Zope makes them, and
prints which objects are mount points and what they lead to. The classes have the names and the
states of those of Zope. With zope, they are those of Zope itself, which must be installed. With
dense, every number below the greatest is an object.
"""
import json
import os
import sys
import types

import transaction
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB import DB
from ZODB.FileStorage import FileStorage
from ZODB.utils import u64


def stub(module, name):
    """A persistent class under the name of one of Zope."""
    parts = module.split('.')
    for i in range(1, len(parts) + 1):
        sys.modules.setdefault('.'.join(parts[:i]), types.ModuleType('.'.join(parts[:i])))
    cls = type(name, (Persistent,), {'__module__': module})
    setattr(sys.modules[module], name, cls)
    return cls


if sys.argv[2:] == ['zope']:
    from OFS.Application import Application
    from OFS.Folder import Folder
    from Products.TemporaryFolder.TemporaryFolder import MountedTemporaryFolder
    from Products.ZODBMountPoint.MountedObject import MountedObject

    def mount(path):
        return MountedObject(path)

    def temporary(id):
        return MountedTemporaryFolder(id)
else:
    Application = stub('OFS.Application', 'Application')
    Folder = stub('OFS.Folder', 'Folder')
    MountedObject = stub('Products.ZODBMountPoint.MountedObject', 'MountedObject')
    MountedTemporaryFolder = stub('Products.TemporaryFolder.TemporaryFolder', 'MountedTemporaryFolder')

    def mount(path):
        m = MountedObject()
        m._path, m.id = path, path.split('/')[-1]
        return m

    def temporary(id):
        m = MountedTemporaryFolder()
        m.id, m.title, m._path, m._params = id, '', '/', "'1'"
        return m
BTreeFolder2 = stub('Products.BTreeFolder2.BTreeFolder2', 'BTreeFolder2')


def folder(parent, id, cls=Folder):
    f = cls()
    f.id = id
    put(parent, id, f)
    return f


def put(parent, id, value):
    tree = parent.__dict__.get('_tree')
    if tree is not None:
        tree[id] = value
    else:
        setattr(parent, id, value)


def mounted(parent, m):
    put(parent, m.id, m)
    points = dict(parent.__dict__.get('_mount_points', {}))
    points[m.id] = m
    parent._mount_points = points
    return m


dir = sys.argv[1]
databases = {}
for name in 'main', 'catalog', 'archive', 'shelf', 'gone':
    DB(FileStorage(os.path.join(dir, name + '.fs')), databases=databases, database_name=name)
conn = databases['main'].open()
apps = {}
for name in databases:
    root = conn.get_connection(name).root()
    apps[name] = root['Application'] = Application()
transaction.commit()
if sys.argv[2:] != ['dense']:
    for db in databases.values():
        db.storage.new_oid()  # a number that no object gets, as with several clients

# Each is at its path in its own database, the archive in a large BTree.
catalog = folder(apps['catalog'], 'catalog')
catalog.items = PersistentMapping(a=Folder())
site = folder(apps['archive'], 'site')
old = folder(site, 'old', BTreeFolder2)
old._tree = OOBTree()
for i in range(500):
    folder(old, 'page%03d' % i)
archive = folder(old, 'archive')
# The shelf is elsewhere in its own, which only the configuration of Zope tells.
shelf = PersistentMapping()
conn.get_connection('shelf').root()['other'] = shelf
shelf['top'] = folder(Folder(), 'books')
transaction.commit()

main = apps['main']
was = mounted(main, mount('/catalog'))
transaction.commit()
mounts = {'catalog': mounted(main, mount('/catalog'))}  # in its place: the other one is garbage
del was
site = folder(main, 'site')
old = folder(site, 'old', BTreeFolder2)
old._tree = OOBTree()
mounts['archive'] = mounted(old, mount('/site/old/archive'))
mounts['shelf'] = mounted(main, mount('/shelf'))
mounts['missing'] = mounted(main, mount('/missing'))
mounted(main, temporary('temp_folder'))
transaction.commit()

# References between databases, by name.
main.far = apps['gone'], catalog
apps['catalog'].back = main
transaction.commit()
print(json.dumps({
    'mounts': {n: u64(m._p_oid) for n, m in mounts.items()},
    'targets': {'catalog': u64(catalog._p_oid), 'archive': u64(archive._p_oid), 'shelf': u64(shelf['top']._p_oid)},
}))
conn.close()
for db in databases.values():
    db.close()
