package page

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// chromium returns the browser, or skips the test.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	zeotest.Missing(t, "chromium is not installed: make install-monitoring-tools")
	return ""
}

// browse runs the browser, headless, and returns what it printed.
func browse(t *testing.T, browser, dir string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
		"--disable-background-networking", "--user-data-dir=" + dir, "--enable-logging=stderr", "--virtual-time-budget=2000",
	}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Minute // for its other processes, which write to the same files
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium %q: %v\n%s", args, err, &errs)
	}
	return out.String(), errs.String()
}

var (
	console  = regexp.MustCompile(`(?m)^.*(CONSOLE|Content Security Policy).*$`)
	measured = regexp.MustCompile(`<iframe id="([^"]*)"[^>]* data-measured="([^"]*)"`)
)

// measure tells the page that frames it its own width, and that of all that is too wide for it.
const measure = `<script>
const wide = [...document.querySelectorAll('main *')].filter(e => !e.closest('thead') && e.getBoundingClientRect().right > innerWidth + 1);
const e = document.documentElement;
parent.document.getElementById(frameElement.id).dataset.measured = [innerWidth, e.scrollWidth, wide.length].join(' ');
</script>`

// narrowest is the least width in pixels that a window of Chromium has: what is narrower
// is in a frame.
const narrowest = 500

// look is a way to look at a page.
type look struct {
	page          string
	width, height int
	dark          bool
}

func (l look) String() string {
	return fmt.Sprintf("%s-%d-%s", l.page, l.width, map[bool]string{true: "dark", false: "light"}[l.dark])
}

// shoot takes a picture of a page, and returns what the browser told.
func (l look) shoot(t *testing.T, browser, dir, url, file string) (stderr string) {
	t.Helper()
	url += "/" + l.page
	if l.width < narrowest {
		url += fmt.Sprintf("?frame=%d,%d", l.width, l.height)
	}
	_, stderr = browse(t, browser, dir, fmt.Sprintf("--window-size=%d,%d", max(l.width, narrowest), l.height),
		"--blink-settings=preferredColorScheme="+map[bool]string{true: "0", false: "1"}[l.dark], "--screenshot="+file, url)
	if l.width >= narrowest {
		return stderr
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	cut := image.NewRGBA(image.Rect(0, 0, l.width, l.height))
	draw.Draw(cut, cut.Bounds(), img, image.Point{}, draw.Src)
	var b bytes.Buffer
	if err := png.Encode(&b, cut); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return stderr
}

// The page in a real browser: it obeys its own policy, is no wider than the window, and
// shows what it is to show, narrow and wide, light and dark.
func TestChromium(t *testing.T) {
	browser := chromium(t)
	shots := os.Getenv("NEO_TEST_SHOTS") // where the pictures are to be kept
	if shots == "" {
		shots = t.TempDir()
	}
	mux := http.NewServeMux()
	var frames strings.Builder
	want := map[string]bool{}
	for name, s := range map[string]*status.Status{"healthy": healthy(), "busy": busy(), "large": large(), "down": down(), "hostile": hostile()} {
		p := pageOf(s)
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) {
			if size := r.FormValue("frame"); size != "" {
				width, height, _ := strings.Cut(size, ",")
				fmt.Fprintf(w, `<!doctype html><body style="margin:0"><iframe style="border:0" width=%s height=%s src="/plain/%s">`, width, height, name)
				return
			}
			r.URL.Path = "/"
			p.ServeHTTP(w, r)
		})
		plain := get(t, p, "/").Body.String() // without the policy, which forbids frames
		mux.HandleFunc("/plain/"+name, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, plain) })
		mux.HandleFunc("/measured/"+name, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, strings.Replace(plain, "</body>", measure+"</body>", 1))
		})
		for _, width := range []int{320, 400, 800, 1100, 1600} {
			fmt.Fprintf(&frames, `<iframe id=%[1]s-%[2]d width=%[2]d height=900 style="border:0" src="/measured/%[1]s"></iframe>`, name, width)
			want[fmt.Sprintf("%s-%d: %d %d 0", name, width, width, width)] = true
		}
	}
	mux.HandleFunc("/frames", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<!doctype html><body>"+frames.String()) })
	server := httptest.NewServer(mux)
	defer server.Close()
	dir := t.TempDir()

	dom, _ := browse(t, browser, dir, "--dump-dom", server.URL+"/frames")
	for _, m := range measured.FindAllStringSubmatch(dom, -1) {
		if got := m[1] + ": " + m[2]; !want[got] {
			t.Errorf("page and width of the window: that, width of the page, parts that are cut off: %s", got)
		} else {
			delete(want, got)
		}
	}
	if len(want) > 0 {
		t.Errorf("not measured: %v", want)
	}
	looks := []look{{"busy", 1600, 1300, false}, {"healthy", 400, 2000, true}, {"large", 1600, 2200, true}}
	if os.Getenv("NEO_TEST_SHOTS") != "" {
		looks = append(looks, look{"healthy", 1600, 1100, false}, look{"healthy", 1600, 1100, true}, look{"healthy", 400, 2000, false}, look{"busy", 1600, 1300, true},
			look{"busy", 400, 3000, false}, look{"busy", 400, 3000, true}, look{"large", 1600, 2200, false}, look{"large", 400, 5000, false}, look{"down", 1600, 900, true}, look{"down", 400, 2000, false}, look{"hostile", 1600, 1000, false})
	}
	for _, l := range looks {
		file := filepath.Join(shots, l.String()+".png")
		if told := console.FindString(l.shoot(t, browser, dir, server.URL, file)); told != "" {
			t.Errorf("%v: %s", l, told)
		}
		checkShot(t, file, l.width, l.dark)
	}
}

// The page shows what is new by itself, without being loaded again. (Headless, the browser
// does nothing without scripts: what it does then is not tested here.)
func TestRefresh(t *testing.T) {
	browser := chromium(t)
	var asked atomic.Int32
	p := New(Config{Interval: time.Second, Collect: func(context.Context) *status.Status {
		s := healthy()
		s.Cluster = fmt.Sprintf("seen-%d", asked.Add(1))
		return s
	}})
	server := httptest.NewServer(p)
	defer server.Close()
	dom, stderr := browse(t, browser, t.TempDir(), "--virtual-time-budget=4000", "--dump-dom", server.URL)
	if told := console.FindString(stderr); told != "" {
		t.Error(told)
	}
	if asked.Load() < 2 || strings.Contains(dom, "</span> seen-1<") || !strings.Contains(dom, "</span> seen-") {
		t.Errorf("asked %d times, shows %s", asked.Load(), regexp.MustCompile("seen-[0-9]+").FindString(dom))
	}
}

// checkShot looks whether a picture has its width, and a ground as light or dark as it is
// to be.
func checkShot(t *testing.T, file string, width int, dark bool) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Error(err)
		return
	}
	if got := img.Bounds().Dx(); got != width {
		t.Errorf("%s is %d pixels wide", file, got)
	}
	r, g, b, _ := img.At(2, 2).RGBA()
	if isDark := r+g+b < 3*0x8000; isDark != dark {
		t.Errorf("%s: dark is %v", file, isDark)
	}
}
