package config

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Write writes an import as the text of a file. The texts of its storages are written
// as they are, and made if they are empty. What would not be read again as the same values
// is refused; then nothing is written.
func Write(w io.Writer, imp Import) error {
	if c := imp.Destination.Compress; c != NoCompression && c != -1 && (c < 1 || c > 9) {
		return fmt.Errorf("compression level %d is none of -1 and 1 to 9", c)
	}
	text := format(imp)
	read, err := Parse(strings.NewReader(text), "importer.conf")
	if err != nil {
		return fmt.Errorf("the import can not be written as a file: %w", err)
	}
	want, got := plainImport(imp), plainImport(read)
	for i, src := range want.Sources {
		if i >= len(got.Sources) || !reflect.DeepEqual(src, got.Sources[i]) {
			return fmt.Errorf("the import can not be written as a file: a name or a path of [%s] has characters that have a meaning there", src.Section)
		}
	}
	if !reflect.DeepEqual(want, got) {
		return fmt.Errorf("the import can not be written as a file: a value of [%s] has characters that have a meaning there", want.Destination.Section)
	}
	_, err = io.WriteString(w, text)
	return err
}

// plainImport returns an import without what is not in its values, and with what its
// zero fields mean.
func plainImport(imp Import) Import {
	imp.Path, imp.Warnings = "", nil
	imp.Destination.Wait = normalWait(imp.Destination.Wait)
	imp.Sources = slices.Clone(imp.Sources)
	for i := range imp.Sources {
		src := &imp.Sources[i]
		src.Storage.Text = ""
		if z := src.Storage.ZEO; z != nil && z.Storage == "" {
			with := *z
			with.Storage = "1"
			src.Storage.ZEO = &with
		}
		if n := src.Storage.NEO; n != nil {
			with := *n
			with.Masters = strings.Join(strings.Fields(n.Masters), " ")
			src.Storage.NEO = &with
		}
		if src.DatabaseName == "" {
			src.DatabaseName = src.Section
		}
		if len(src.Mounts) == 0 {
			src.Mounts = nil
		}
	}
	return imp
}

func normalWait(d time.Duration) time.Duration {
	if d < 0 {
		return -time.Second
	}
	return d.Round(time.Millisecond)
}

func format(imp Import) string {
	var b strings.Builder
	key := func(name, value string) { fmt.Fprintf(&b, "%s: %s\n", name, strings.ReplaceAll(value, "%", "%%")) }
	d := imp.Destination
	fmt.Fprintf(&b, "[%s]\n", d.Section)
	key("adapter", d.Adapter)
	key("database", d.Database)
	if d.Engine != "" {
		key("engine", d.Engine)
	}
	switch wait := normalWait(d.Wait); {
	case wait < 0:
		key("wait", "-1")
	case wait > 0:
		ms := wait.Milliseconds()
		key("wait", strings.TrimRight(strings.TrimRight(fmt.Sprintf("%d.%03d", ms/1000, ms%1000), "0"), "."))
	}
	switch d.Compress {
	case -1:
		key("compress", "true")
	case NoCompression:
		key("compress", "false")
	default:
		key("compress", fmt.Sprintf("zlib=%d", d.Compress))
	}
	if d.WriteBack {
		key("writeback", "true")
	}
	for _, src := range imp.Sources {
		fmt.Fprintf(&b, "\n[%s]\n", src.Section)
		if src.OID != 0 {
			key("oid", fmt.Sprint(uint64(src.OID)))
		}
		if src.DatabaseName != "" && src.DatabaseName != src.Section {
			key("database-name", src.DatabaseName)
		}
		for _, m := range src.Mounts {
			key(m.Section, fmt.Sprint(uint64(m.OID)))
		}
		text := src.Storage.Text
		if text == "" {
			text = storageText(src.Storage)
		}
		b.WriteString("storage:\n")
		depth := 1
		for line := range strings.SplitSeq(text, "\n") {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			if strings.HasPrefix(line, "</") {
				depth = max(1, depth-1)
			}
			b.WriteString(strings.Repeat("  ", depth) + strings.ReplaceAll(line, "%", "%%") + "\n")
			if line[0] == '<' && line[1:2] != "/" && !strings.HasSuffix(line, "/>") {
				depth++
			}
		}
	}
	return b.String()
}

// storageText returns a storage as a section of ZConfig.
func storageText(st Storage) string {
	var b strings.Builder
	key := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s %s\n", name, strings.ReplaceAll(value, "$", "$$"))
		}
	}
	switch {
	case st.File != nil:
		b.WriteString("<filestorage>\n")
		key("path", st.File.Path)
		key("blob-dir", st.File.BlobDir)
		b.WriteString("</filestorage>")
	case st.ZEO != nil:
		z := st.ZEO
		// The ZODB package has zeoclient, which knows wait, ZEO has the other one, which
		// knows the rest. Both are one here.
		kind := "clientstorage"
		if !z.Wait {
			kind = "zeoclient"
		}
		fmt.Fprintf(&b, "<%s>\n", kind)
		for _, server := range z.Servers {
			key("server", server)
		}
		key("storage", z.Storage)
		if !z.Wait {
			key("wait", "false")
		}
		if z.WaitTimeout != waitTimeout {
			key("wait-timeout", fmt.Sprint(int64(z.WaitTimeout/time.Second)))
		}
		if z.Cert != "" {
			b.WriteString("<ssl>\n")
			key("certificate", z.Cert)
			key("key", z.Key)
			key("authenticate", z.CA)
			key("server-hostname", z.ServerName)
			if z.AnyName {
				key("check-hostname", "false")
			}
			b.WriteString("</ssl>\n")
		}
		fmt.Fprintf(&b, "</%s>", kind)
	case st.NEO != nil:
		b.WriteString("<NEOStorage>\n")
		key("name", st.NEO.Name)
		key("master_nodes", st.NEO.Masters)
		key("ca", st.NEO.CA)
		key("cert", st.NEO.Cert)
		key("key", st.NEO.Key)
		b.WriteString("</NEOStorage>")
	case st.Backup != nil:
		k := st.Backup
		b.WriteString("<neobackup>\n")
		key("url", k.URL)
		key("verify-keys", strings.Join(k.VerifyKeys, " "))
		key("identity-file", k.IdentityFile)
		key("lineage", k.Lineage)
		if k.At != 0 {
			key("at", k.At.String())
		}
		key("state-dir", k.StateDir)
		if k.CacheSize != 0 {
			key("cache-size", fmt.Sprint(k.CacheSize))
		}
		b.WriteString("</neobackup>")
	}
	return b.String()
}
