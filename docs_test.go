package neo_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	linkMark    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	codeMark    = regexp.MustCompile("`[^`]*`")
	headingMark = regexp.MustCompile(`^#{1,6} +(.+)$`)
	schemeMark  = regexp.MustCompile(`^[a-z]+:`)
	notOfAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// prose returns the lines of a page of Markdown that are no code.
func prose(t *testing.T, path string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	code := false
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "```") {
			code = !code
		} else if !code && !strings.HasPrefix(line, "    ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// brokenLinks returns the relative links of a page that lead to no file, or to no heading.
func brokenLinks(t *testing.T, path string) (broken []string) {
	t.Helper()
	for _, line := range prose(t, path) {
		for _, m := range linkMark.FindAllStringSubmatch(codeMark.ReplaceAllString(line, ""), -1) {
			if schemeMark.MatchString(m[1]) {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), filepath.FromSlash(file))
			}
			if _, err := os.Stat(target); err != nil || anchor != "" && !hasHeading(t, target, anchor) {
				broken = append(broken, m[1])
			}
		}
	}
	return broken
}

func hasHeading(t *testing.T, path, anchor string) bool {
	t.Helper()
	for _, line := range prose(t, path) {
		if m := headingMark.FindStringSubmatch(line); m != nil && anchor == strings.ReplaceAll(notOfAnchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-") {
			return true
		}
	}
	return false
}

// Each relative link of a page leads to a file, and to a heading of it.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "page.md")
	text := "# A `page`, of links\n\n[a](page.md) [b](#a-page-of-links) [c](page.md#none) [d](none.md#x) [e](https://example.org/none)\n[f](.)\n`[g](none)`\n```\n[h](none)\n# None\n```\n    [i](none)\n"
	if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(brokenLinks(t, page), " "); got != "page.md#none none.md#x" {
		t.Errorf("broken links are %q", got)
	}
	pages := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case d.Type().IsRegular() && filepath.Ext(path) == ".md":
			pages++
			for _, link := range brokenLinks(t, path) {
				t.Errorf("%s has a link to %s, which does not exist", path, link)
			}
		}
		return nil
	})
	if err != nil || pages < 20 {
		t.Errorf("%d pages, %v", pages, err)
	}
}
