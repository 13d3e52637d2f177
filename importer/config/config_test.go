package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/tid"
)

func parse(text string) (Import, error) { return Parse(strings.NewReader(text), "importer.conf") }

const minimal = "[neo]\nadapter: SQLite\ndatabase: /db\n[root]\nstorage:\n  <filestorage>\n    path /Data.fs\n  </filestorage>\n"

// source is a section with a storage.
func source(name, path string, more ...string) string {
	return fmt.Sprintf("[%s]\nstorage:\n <filestorage>\n path %s\n </filestorage>\n%s\n", name, path, strings.Join(more, "\n"))
}

// single is a file with one source, of the storage given.
func single(storage string) string {
	return "[neo]\ndatabase: db\n[root]\nstorage:\n " + strings.ReplaceAll(storage, "\n", "\n ")
}

func TestParse(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	t.Setenv("DATA_DIR", "/env")
	file := func(path string) Storage { return Storage{File: &File{Path: path}} }
	for _, tt := range []struct {
		name, text string
		want       Import
		warnings   []string // parts of them
	}{
		{"least", minimal, Import{
			Destination: Destination{Section: "neo", Adapter: "SQLite", Database: "/db", Compress: -1},
			Sources:     []Source{{Section: "root", DatabaseName: "root", Storage: file("/Data.fs")}},
		}, nil},
		{"all of the first section", "[x y]\nadapter = MySQLdb\nDatabase: neo:p%%w@neo~/s\nengine: RocksDB\nwait: 1.5\ncompress: zlib=9\nwriteback: true\n" + source("root", "~/a"), Import{
			Destination: Destination{Section: "x y", Adapter: "MySQLdb", Database: "neo:p%w@neo~/s", Engine: "RocksDB", Wait: 1500 * time.Millisecond, Compress: 9, WriteBack: true},
			Sources:     []Source{{Section: "root", DatabaseName: "root", Storage: file("/home/x/a")}},
		}, nil},
		{"several, some twice, in circles", "[neo]\ndatabase: d\nwait: -3\ncompress: false\nwriteback: false\n" +
			source("Main", "/a", "foo: 421", "bar = 666") + source("foo", "/b", "oid: 123", "baz=1000") +
			source("bar", "/c", "oid: 4567", "baz: 7", "database-name: Bär") + source("baz", "/d", "oid: 2000", "foo: 8"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "d", Wait: -time.Second, Compress: NoCompression},
			Sources: []Source{
				{Section: "Main", DatabaseName: "Main", Mounts: []Mount{{"foo", 421}, {"bar", 666}}, Storage: file("/a")},
				{Section: "foo", DatabaseName: "foo", OID: 123, Mounts: []Mount{{"baz", 1000}}, Storage: file("/b")},
				{Section: "bar", DatabaseName: "Bär", OID: 4567, Mounts: []Mount{{"baz", 7}}, Storage: file("/c")},
				{Section: "baz", DatabaseName: "baz", OID: 2000, Mounts: []Mount{{"foo", 8}}, Storage: file("/d")},
			},
		}, []string{"importer.conf:34: the mount points form a circle, foo -> baz -> foo"}},
		{"all of a Data.fs", single("# of Zope\n%%define instance /zope\n%%define VAR ${Instance}/var\n\n<FileStorage main>\n" +
			"path $var/a$$b/$(DATA_DIR)\nBlob-dir ~/blobs\ncreate false\nread-only TRUE\nquota 20 MB\npacker x:y\npack-gc no\npack-keep-old on\n</filestorage>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources:     []Source{{Section: "root", DatabaseName: "root", Storage: Storage{File: &File{Path: "/zope/var/a$b//env", BlobDir: "/home/x/blobs"}}}},
		}, []string{"importer.conf:14: quota of <FileStorage> is ignored", "importer.conf:15: packer", "importer.conf:16: pack-gc", "importer.conf:17: pack-keep-old",
			"importer.conf:11: blobs are not supported: the records of blobs are imported, the files in blob-dir /home/x/blobs are not"}},
		{"blobs around it", single("<blobstorage>\n blob-dir /blobs\n <filestorage>\n path a\n </filestorage>\n</blobstorage>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources:     []Source{{Section: "root", DatabaseName: "root", Storage: Storage{File: &File{Path: "a", BlobDir: "/blobs"}}}},
		}, []string{"importer.conf:6: blobs are not supported"}},
		{"ZEO, least", single("<zeoclient>\nserver 8100\n</zeoclient>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources:     []Source{{Section: "root", DatabaseName: "root", Storage: Storage{ZEO: &ZEO{Servers: []string{"127.0.0.1:8100"}, Storage: "1", Wait: true, WaitTimeout: 30 * time.Second}}}},
		}, nil},
		{"ZEO", single("%%import ZEO\n<clientstorage>\nserver zeo:8100\nserver [::1]:1\nserver ~/sock\nserver :9\nstorage main\nwait off\nwait-timeout 5\ncache-size 1\nusername x\n" +
			"<ssl>\ncertificate ~/c\nkey k\nauthenticate ca\ncheck-hostname off\nserver-hostname h\n</ssl>\n</clientstorage>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources: []Source{{Section: "root", DatabaseName: "root", Storage: Storage{ZEO: &ZEO{
				Servers: []string{"zeo:8100", "[::1]:1", "/home/x/sock", "127.0.0.1:9"}, Storage: "main", WaitTimeout: 5 * time.Second,
				CA: "ca", Cert: "/home/x/c", Key: "k", ServerName: "h", AnyName: true}}}},
		}, []string{"importer.conf:14: cache-size of <clientstorage> is ignored", "importer.conf:15: username"}},
		{"NEO", single("%%import neo.client\n%%import other\n<NEOStorage>\nmaster_nodes m1:1  m2\nname db\nca a\ncert b\nkey c\nlogfile /l\n</NEOStorage>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources:     []Source{{Section: "root", DatabaseName: "root", Storage: Storage{NEO: &NEO{Name: "db", Masters: "m1:1 m2", CA: "a", Cert: "b", Key: "c"}}}},
		}, []string{"importer.conf:6: %import other is ignored", "importer.conf:13: logfile"}},
		{"backup, least", single("<neobackup>\nurl file:///backup\nverify-keys a/writer+1+x\n</neobackup>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources:     []Source{{Section: "root", DatabaseName: "root", Storage: Storage{Backup: &Backup{URL: "file:///backup", VerifyKeys: []string{"a/writer+1+x"}}}}},
		}, nil},
		{"backup", single("<neobackup>\nurl s3://b/p?endpoint=h:1&region=eu%%20x\nverify-keys a/writer+1+x/=  b/writer+2+y\nidentity-file ~/id\nlineage 00112233445566778899aabbccddeeff\n" +
			"at 03f1a2b3c4d5e6f7\nstate-dir ~/state\ncache-size 64 MB\n</neobackup>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources: []Source{{Section: "root", DatabaseName: "root", Storage: Storage{Backup: &Backup{URL: "s3://b/p?endpoint=h:1&region=eu%20x", VerifyKeys: []string{"a/writer+1+x/=", "b/writer+2+y"},
				IdentityFile: "/home/x/id", Lineage: "00112233445566778899aabbccddeeff", At: 0x03f1a2b3c4d5e6f7, StateDir: "/home/x/state", CacheSize: 64 << 20}}}},
		}, nil},
		{"backup at a time", single("<neobackup>\nurl file:///backup\nverify-keys k\nat 2026-11-20T10:00:00Z\n</neobackup>"), Import{
			Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "db", Compress: -1},
			Sources: []Source{{Section: "root", DatabaseName: "root", Storage: Storage{Backup: &Backup{URL: "file:///backup", VerifyKeys: []string{"k"},
				At: tid.FromTime(time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC))}}}},
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if got.Path != "importer.conf" {
				t.Errorf("path %q", got.Path)
			}
			for i, w := range got.Warnings {
				if i >= len(tt.warnings) || !strings.Contains(w, tt.warnings[i]) {
					t.Errorf("warning %q", w)
				}
			}
			if len(got.Warnings) < len(tt.warnings) {
				t.Errorf("%d warnings, want %d", len(got.Warnings), len(tt.warnings))
			}
			if diff := cmp.Diff(plainImport(tt.want), plainImport(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkWritten(t, got)
			for i := range got.Sources {
				got.Sources[i].Storage.Text = ""
			}
			checkWritten(t, got)
		})
	}
}

// checkWritten fails if what Write writes is read as another import.
func checkWritten(t *testing.T, imp Import) {
	t.Helper()
	var b strings.Builder
	if err := Write(&b, imp); err != nil {
		t.Error(err)
		return
	}
	got, err := parse(b.String())
	if err != nil {
		t.Errorf("%v\n%s", err, b.String())
		return
	}
	if diff := cmp.Diff(plainImport(imp), plainImport(got)); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, b.String())
	}
}

func TestParseRefuses(t *testing.T) {
	two := func(rootMore, fooMore string) string {
		return "[neo]\ndatabase: d\n" + source("root", "/a", rootMore) + source("foo", "/b", fooMore)
	}
	first := func(lines string) string { return "[neo]\ndatabase: d\n" + lines + "\n" + source("root", "/a") }
	fs := func(lines string) string { return single("<filestorage>\n" + lines + "\n</filestorage>") }
	zeo := func(lines string) string { return single("<zeoclient>\n" + lines + "\n</zeoclient>") }
	for _, tt := range []struct {
		name, text string
		line       int
		want       string
	}{
		{"nothing", "", 1, "no [section]"},
		{"no source", "[neo]\ndatabase: d\n", 1, "no source: each section after [neo]"},
		{"DEFAULT", "[DEFAULT]\n# x\nadapter: SQLite\n" + minimal, 3, `write "adapter" into the section`},
		{"section twice", minimal + "[root]\n", 9, "already there"},
		{"section in another encoding", "[neo]\ndatabase: d\n" + source("r\xe4t", "/a"), 3, "not UTF-8"},

		{"unknown key", first("databse: x"), 3, `unknown key "databse" in [neo]; did you mean "database"?`},
		{"with a hyphen", first("write-back: true"), 3, `did you mean "writeback"?`},
		{"no key is near", first("quux: 1"), 3, `unknown key "quux" in [neo]`},
		{"no first section", source("root", "/a"), 2, `"storage" is a key of a source, but the first section, [root],`},
		{"no database", "[neo]\nadapter: SQLite\n" + source("root", "/a"), 1, "no database"},
		{"empty database", "[neo]\ndatabase:\n" + source("root", "/a"), 2, "database: no value"},
		{"several lines", "[neo]\ndatabase: a\n  compress: true\n" + source("root", "/a"), 2, "several lines"},
		{"adapter", first("adapter: sqlite"), 3, `"sqlite" is none of MySQL, MySQLdb, PyMySQL, SQLite; did you mean "SQLite"?`},
		{"adapter of the node", first("adapter: Importer"), 3, "receives the data"},
		{"engine", first("engine: innodb"), 3, `did you mean "InnoDB"?`},
		{"engine of SQLite", first("adapter: SQLite\nengine: RocksDB"), 4, "SQLite has none"},
		{"wait", first("wait: 1m"), 3, "not a number of seconds"},
		{"wait nan", first("wait: nan"), 3, "not a number of seconds"},
		{"wait long", first("wait: 1e300"), 3, "-1 is without end"},
		{"compress", first("compress: True"), 3, `"True" is not a valid 'compress' option: want true, false, zlib or zlib=1 to zlib=9; did you mean "true"?`},
		{"compress 0", first("compress: zlib=0"), 3, "invalid compression level"},
		{"compress 10", first("compress: zlib=10"), 3, "invalid compression level"},
		{"writeback", first("writeback: yes"), 3, "neither true nor false"},
		{"writeback of several", "[neo]\ndatabase: d\nwriteback: true\n" + source("root", "/a", "foo: 1") + source("foo", "/b", "oid: 1"), 3, "can not forward new transactions to splitted DB"},
		{"writeback, read-only", "[neo]\ndatabase: d\nwriteback: true\n" + source("root", "/a\n read-only on"), 8, "with writeback (line 3) the source is written to"},
		{"writeback to a server", strings.Replace(zeo("server h:1"), "database: db", "database: db\nwriteback: true", 1), 3, "writeback to the storage 1 of the ZEO server h:1 is not possible: only a Data.fs"},
		{"writeback to a backup", strings.Replace(single("<neobackup>\nurl file:///b\nverify-keys k\n</neobackup>"), "database: db", "database: db\nwriteback: true", 1), 3, "writeback to the backup repository file:///b is not possible: only neobackup adds"},
		{"backup without url", single("<neobackup>\nverify-keys k\n</neobackup>"), 5, "<neobackup> has no url"},
		{"backup without trust", single("<neobackup>\nurl file:///b\n</neobackup>"), 5, "<neobackup> has no verify-keys"},
		{"lineage", single("<neobackup>\nlineage 0011\n</neobackup>"), 6, "is not the id of a lineage"},
		{"at", single("<neobackup>\nat yesterday\n</neobackup>"), 6, "is another transaction at each start"},
		{"at 0", single("<neobackup>\nat tid:0\n</neobackup>"), 6, "nothing is that old"},
		{"cache-size", single("<neobackup>\nurl file:///b\nverify-keys k\ncache-size 0\n</neobackup>"), 8, "no size"},
		{"cache-size too large", single("<neobackup>\ncache-size 9999999999999GB\n</neobackup>"), 6, "not a size"},
		{"a key of neobackup.conf", single("<neobackup>\nstate_dir /x\n</neobackup>"), 6, `did you mean "state-dir"?`},
		{"a reference", first("adapter: %(x)s"), 3, "not set"},

		{"no storage", "[neo]\ndatabase: d\n[root]\noid: 0\n", 3, "[root] has no storage"},
		{"unknown key of a source", two("storag: 1", ""), 8, `did you mean "storage"?`},
		{"database_name", two("database_name: x", ""), 8, `did you mean "database-name"?`},
		{"mount of no section", two("fooo: 1", "oid: 1"), 8, `"fooo" is neither a key of a source nor a section, whose mount point it would be; did you mean "foo"?`},
		{"mount of itself", two("root: 1", "oid: 1"), 8, "[root] can not be mounted into itself"},
		{"mount of the destination", two("neo: 1", "oid: 1"), 8, "[neo] says where the data go"},
		{"key of the first section", two("compress: true", "oid: 1"), 8, `"compress" is a key of the first section, [neo]`},
		{"mount in capitals", "[neo]\ndatabase: d\n" + source("root", "/a", "Foo: 1") + source("Foo", "/b", "oid: 1"), 8, "[Foo] (line 9) can not be mounted: write its name in lower case"},
		{"hexadecimal", two("foo: 0x1a5", "oid: 1"), 8, `"0x1a5" is not the number of an object in decimal: that is 421`},
		{"underscores", two("foo: 1_0", "oid: 1"), 8, "in decimal: that is 10"},
		{"negative", two("foo: -1", "oid: 1"), 8, "in decimal"},
		{"signed", two("foo: +1", "oid: 1"), 8, "in decimal"},
		{"too big", two("foo: 9223372036854775808", "oid: 1"), 8, "in decimal"},
		{"oid", two("foo: 1", "oid: x"), 14, `oid: "x"`},
		{"no oid", two("foo: 1", "oid:"), 14, `oid: ""`},
		{"same mount point", "[neo]\ndatabase: d\n" + source("root", "/a", "foo: 1", "bar: 1") + source("foo", "/b", "oid: 1") + source("bar", "/c", "oid: 1"), 9, "object 1 of [root] is already the mount point of [foo] (line 8)"},
		{"two roots", two("foo: 1", ""), 9, "[root] and [foo] both have oid 0"},
		{"no root", two("foo: 1\noid: 2", "oid: 1"), 9, "no source is the root"},
		{"not mounted", two("", "oid: 1"), 9, `[foo] can not be reached from the root, [root]: the database that it is mounted into needs a key "foo"`},
		{"not mounted, in capitals", "[neo]\ndatabase: d\n" + source("root", "/a") + source("Foo", "/b", "oid: 1"), 9, "must be named [foo]"},
		{"a circle beside the root", "[neo]\ndatabase: d\n" + source("root", "/a") + source("foo", "/b", "oid: 1", "bar: 1") + source("bar", "/c", "oid: 1", "foo: 1"), 9, "[foo] can not be reached"},
		{"names twice", two("foo: 1\ndatabase-name: x", "oid: 1\ndatabase-name: x"), 16, `database-name "x" is that of [root] too`},
		{"name of another section", two("foo: 1\ndatabase-name: foo", "oid: 1"), 10, `database-name "foo" is that of [root] too`},
		{"no name", two("database-name:", ""), 8, "no name"},
		{"the same file", "[neo]\ndatabase: d\n" + source("root", "/a", "foo: 1") + source("foo", "/x/../a", "oid: 1"), 10, "[root] and [foo] are the same file /a"},

		{"text beside", single("filestorage /a"), 5, "outside of a section"},
		{"empty", single("# x"), 4, "no storage section"},
		{"two storages", single("<filestorage>\npath a\n</filestorage>\n<filestorage>\npath b\n</filestorage>"), 8, "two storages"},
		{"not closed", single("<filestorage>\npath a"), 5, "<filestorage> has no </filestorage>"},
		{"closed by another", single("<filestorage>\npath a\n</zeoclient>"), 7, "want </filestorage>, the end of line 5"},
		{"not open", single("</filestorage>"), 5, "no section is open"},
		{"no header", single("<filestorage"), 5, "no section"},
		{"deep", single(strings.Repeat("<blobstorage>\n", 9)), 12, "inside each other"},
		{"unknown directive", single("%%defin a b"), 5, "none of %define and %import"},
		{"a single percent", "[neo]\ndatabase: d\n[root]\nstorage:\n %import ZEO\n", 4, "% must be doubled"},
		{"include", single("%%include zeo.conf"), 5, "write the text of zeo.conf in its place"},
		{"define without", single("%%define"), 5, "nothing follows"},
		{"define name", single("%%define a-b c"), 5, "letters, digits"},
		{"define twice", single("%%define a b\n%%define A c"), 6, `already "b"`},
		{"not defined", fs("path $x"), 6, "no %define above"},
		{"not in the environment", fs("path $(NO_SUCH_VARIABLE_X)"), 6, "environment has no NO_SUCH_VARIABLE_X"},
		{"dollar", fs("path a$"), 6, "written $$"},
		{"doubling", single("%%define a0 xxxxxxxxxx\n" + doubling() + "<filestorage>\npath $a20\n</filestorage>"), 18, "longer"},
		{"comments count as lines", single("# x\n# y\n<filestorage>\n# z\npth a\n</filestorage>"), 9, `unknown key "pth" in <filestorage>; did you mean "path"?`},
		{"key twice", fs("path a\npath b"), 7, "path is already set in line 6"},
		{"no path", fs("read-only true"), 5, "<filestorage> has no path"},
		{"empty path", fs("path"), 6, "path: no value"},
		{"create", fs("path a\ncreate yes"), 7, "would empty the file"},
		{"flag", fs("path a\nread-only 1"), 7, "neither true nor false"},
		{"size", fs("path a\nquota 1TB"), 7, "not a size"},
		{"user", fs("path ~no such user/a"), 6, "no such user"},
		{"section inside", fs("path a\n<ssl>\n</ssl>"), 7, "<ssl> can not be in <filestorage>"},
		{"blobs of nothing", single("<blobstorage>\nblob-dir b\n</blobstorage>"), 5, "0 storages"},
		{"blobs of blobs", single("<blobstorage>\nblob-dir b\n<blobstorage>\n</blobstorage>\n</blobstorage>"), 7, "can not be in"},
		{"no blob-dir", single("<blobstorage>\n<filestorage>\npath a\n</filestorage>\n</blobstorage>"), 5, "no blob-dir"},
		{"misspelled kind", single("<filestorrage>\n</filestorrage>"), 5, `did you mean "filestorage"`},
		{"demostorage", single("<demostorage>\n</demostorage>"), 5, "runzeo"},
		{"relstorage", single("<relstorage>\n<postgresql>\n</postgresql>\n</relstorage>"), 5, "zodbconvert"},
		{"mappingstorage", single("<mappingstorage/>"), 5, "nothing to import"},
		{"zlibstorage", single("<zlibstorage>\n<filestorage>\npath a\n</filestorage>\n</zlibstorage>"), 5, "keep <zlibstorage> around their storage"},
		{"whole database", single("<zodb main>\n<filestorage>\npath a\n</filestorage>\n</zodb>"), 5, "only the storage that is in it"},
		{"other kind", single("<foostore>\n</foostore>"), 5, "copy it to a Data.fs"},
		{"no server", zeo("storage 1"), 5, "<zeoclient> has no server"},
		{"no port", zeo("server zeo"), 6, "needs a port"},
		{"server twice", zeo("server zeo:1\nserver zeo:1"), 7, "already there"},
		{"wait-timeout", zeo("server 1\nwait-timeout -1"), 7, "less than 0"},
		{"wait-timeout text", zeo("server 1\nwait-timeout 1s"), 7, "not a whole number"},
		{"ssl twice", zeo("server 1\n<ssl>\ncertificate a\n</ssl>\n<ssl>\n</ssl>"), 10, "already there in line 7"},
		{"no certificate", zeo("server 1\n<ssl>\n</ssl>"), 7, "no certificate"},
		{"password-function", zeo("server 1\n<ssl>\ncertificate a\npassword-function x.y\n</ssl>"), 9, "without a password"},
		{"no masters", single("<NEOStorage>\nname x\n</NEOStorage>"), 5, "no master_nodes"},
		{"master", single("<NEOStorage>\nname x\nmaster_nodes a:0\n</NEOStorage>"), 7, "needs a port"},
		{"master-nodes", single("<NEOStorage>\nname x\nmaster-nodes a\n</NEOStorage>"), 7, `did you mean "master_nodes"?`},
		{"half encrypted", single("<NEOStorage>\nname x\nmaster_nodes a\nca a\n</NEOStorage>"), 5, "needs ca, cert and key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse(tt.text)
			if err == nil {
				t.Fatalf("read as %+v", got)
			}
			if place := fmt.Sprintf("importer.conf:%d: ", tt.line); !strings.HasPrefix(err.Error(), place) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s… %s\n%s", err, place, tt.want, numbered(tt.text))
			}
		})
	}
}

func doubling() string {
	var b strings.Builder
	for i := range 20 {
		fmt.Fprintf(&b, "%%%%define a%d $a%d$a%d\n", i+1, i, i)
	}
	return b.String()
}

func numbered(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		fmt.Fprintf(&b, "%3d %s\n", i+1, line)
	}
	return b.String()
}

func TestReadFile(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	path := filepath.Join(os.Getenv("HOME"), "importer.conf")
	if _, err := ReadFile("~/importer.conf"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	imp, err := ReadFile("~/importer.conf")
	if err != nil || imp.Path != path || imp.Root() == nil || imp.Root().Section != "root" {
		t.Errorf("%+v, %v", imp, err)
	}
	if err := os.WriteFile(path, []byte("[neo]\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = ReadFile(path)
	if se, ok := errors.AsType[*conf.SyntaxError](err); !ok || se.Line != 2 {
		t.Errorf("got %v", err)
	}
}

// What is shown of a storage has no secrets.
func TestStorageString(t *testing.T) {
	for text, want := range map[string]string{
		"<filestorage>\npath /a/Data.fs\n</filestorage>":                                     "Data.fs /a/Data.fs",
		"<zeoclient>\nserver h:1\nserver 2\nusername joe\npassword secret\n</zeoclient>":     "storage 1 of the ZEO server h:1 127.0.0.1:2",
		"<neobackup>\nurl s3://b/p\nverify-keys k\nidentity-file secret\n</neobackup>":       "backup repository s3://b/p",
		"<NEOStorage>\nname db\nmaster_nodes a:1 b\nca x\ncert y\nkey secret\n</NEOStorage>": "cluster db of the masters a:1 b",
	} {
		imp, err := parse(single(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := imp.Sources[0].Storage.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if w := strings.Join(imp.Warnings, "\n"); strings.Contains(w, "joe") || strings.Contains(w, "secret") {
			t.Errorf("warnings %s", w)
		}
	}
}

// What can not be read again as it is, is not written.
func TestWriteRefuses(t *testing.T) {
	for name, change := range map[string]func(*Import){
		"path of two lines":     func(i *Import) { i.Sources[0].Storage.File.Path = "/a\nquota 1" },
		"path with a space":     func(i *Import) { i.Sources[0].Storage.File.Path = "/a " },
		"no path":               func(i *Import) { i.Sources[0].Storage.File.Path = "" },
		"no storage":            func(i *Import) { i.Sources[0].Storage.File = nil },
		"header":                func(i *Import) { i.Destination.Section = "a]\n[b" },
		"database of two lines": func(i *Import) { i.Destination.Database = "a\nengine: RocksDB" },
		"database of nothing":   func(i *Import) { i.Destination.Database = "" },
		"level":                 func(i *Import) { i.Destination.Compress = 0 },
		"text of another file":  func(i *Import) { i.Sources[0].Storage.Text = "<filestorage>\npath /b\n</filestorage>" },
		"name":                  func(i *Import) { i.Sources[0].DatabaseName = "x " },
		"two roots":             func(i *Import) { i.Sources = append(i.Sources, i.Sources[0]); i.Sources[1].Section = "b" },
	} {
		imp, err := parse(minimal)
		if err != nil {
			t.Fatal(err)
		}
		imp.Sources[0].Storage.Text = ""
		change(&imp)
		var b strings.Builder
		if err := Write(&b, imp); err == nil || b.Len() > 0 {
			t.Errorf("%s: written as %s (%v)", name, b.String(), err)
		}
	}
}

// The least that a caller has to say, and characters that mean something in a file.
func TestWrite(t *testing.T) {
	imp := Import{
		Destination: Destination{Section: "neo", Adapter: "MySQL", Database: "neo:100%$x@neo", Compress: -1, Wait: 30 * time.Second},
		Sources: []Source{
			{Section: "root", Mounts: []Mount{{"a%b", 7}}, Storage: Storage{File: &File{Path: "/x y/50%$(a)/Data.fs"}}},
			{Section: "a%b", OID: 1, DatabaseName: "100%", Storage: Storage{ZEO: &ZEO{Servers: []string{"h:1"}}}},
		},
	}
	const want = `[neo]
adapter: MySQL
database: neo:100%%$x@neo
wait: 30
compress: true

[root]
a%b: 7
storage:
  <filestorage>
    path /x y/50%%$$(a)/Data.fs
  </filestorage>

[a%b]
oid: 1
database-name: 100%%
storage:
  <zeoclient>
    server h:1
    wait false
    wait-timeout 0
  </zeoclient>
`
	var b strings.Builder
	if err := Write(&b, imp); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	checkWritten(t, imp)
}

func FuzzParse(f *testing.F) {
	f.Add(minimal)
	f.Add("[neo]\ndatabase: d\nwait: -3\n" + source("root", "/a", "foo: 421") + source("foo", "/b", "oid: 123", "root=1000"))
	f.Add(single("%%define a b\n<filestorage>\npath $a/${a}/$$\nread-only on\n</filestorage>"))
	f.Add(single("<blobstorage x>\nblob-dir b\n<zeoclient>\nserver h:1\nserver 2\n<ssl>\ncertificate c\n</ssl>\n</zeoclient>\n</blobstorage>"))
	f.Add(single("<NEOStorage>\nname x\nmaster_nodes a:1 b\n</NEOStorage>"))
	f.Fuzz(func(t *testing.T, text string) {
		imp, err := parse(text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "importer.conf:") {
				t.Errorf("without a line: %v", err)
			}
			return
		}
		if imp.Root() == nil {
			t.Fatal("no root")
		}
		for _, src := range imp.Sources {
			n := 0
			for _, set := range []bool{src.Storage.File != nil, src.Storage.ZEO != nil, src.Storage.NEO != nil} {
				if set {
					n++
				}
			}
			if n != 1 || src.Storage.Text == "" || src.OID > tid.MaxOID {
				t.Errorf("source %+v", src)
			}
		}
		var b strings.Builder
		if err := Write(&b, imp); err != nil {
			t.Errorf("not written: %v", err)
		}
		for i := range imp.Sources {
			imp.Sources[i].Storage.Text = ""
		}
		if err := Write(&b, imp); err != nil {
			// Written is the path itself, not what led to it.
			t.Logf("not written without its text: %v", err)
		}
	})
}
