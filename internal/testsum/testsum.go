// Package testsum turns the output of `go test -json` into a report for people
// and an honest count.
//
// A test is counted once, where it has no subtests of its own: the leaves of the
// tree. A test that fails by itself although its subtests passed counts as
// failed, too. What was running when a package ended abnormally (panic, timeout,
// crash) counts as failed, a package that does not build counts as one failure,
// and a run without any test is no success.
//
// One Summary is used by one goroutine. Nothing here starts processes.
package testsum

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is one line of `go test -json` (go doc cmd/test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Output      string
	Elapsed     float64 // seconds
	FailedBuild string
}

// result is the state of one test: "run" until it has ended.
type result struct {
	pkg, name string
	state     string // run, pass, fail, skip
	output    []string
	parent    bool // it has subtests
}

// Summary collects events. The zero value is not ready; see New.
type Summary struct {
	w       io.Writer
	tests   map[string]*result
	order   []string
	pkgOut  map[string][]string // output outside of tests, also of builds
	broken  []string            // packages that failed without a failing test
	ended   map[string]bool
	nPassed map[string]int
}

// New returns a Summary that writes its report to w as packages end.
func New(w io.Writer) *Summary {
	return &Summary{
		w: w, tests: map[string]*result{}, pkgOut: map[string][]string{},
		ended: map[string]bool{}, nPassed: map[string]int{},
	}
}

// maxLine bounds a line of input; test output is cut by test2json long before.
const maxLine = 16 << 20

// Read takes events until the end of r. Lines that are no JSON are passed on as
// they are.
//
// Expected errors: read errors of r.
func (s *Summary) Read(r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil || e.Action == "" {
			fmt.Fprintln(s.w, sc.Text())
			continue
		}
		s.add(e)
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("testsum: read: %w", err)
	}
	return nil
}

// add takes one event.
func (s *Summary) add(e event) {
	if e.Test == "" {
		s.addPackage(e)
		return
	}
	key := e.Package + "\x00" + e.Test
	t := s.tests[key]
	if t == nil {
		t = &result{pkg: e.Package, name: e.Test, state: "run"}
		s.tests[key] = t
		s.order = append(s.order, key)
		if i := strings.LastIndex(e.Test, "/"); i >= 0 {
			if p := s.tests[e.Package+"\x00"+e.Test[:i]]; p != nil {
				p.parent = true
			}
		}
	}
	switch e.Action {
	case "output":
		t.output = append(t.output, e.Output)
	case "pass", "fail", "skip":
		t.state = e.Action
		if e.Action == "pass" {
			t.output = nil
			s.nPassed[e.Package]++
		}
	}
}

// addPackage takes an event of a package as a whole.
func (s *Summary) addPackage(e event) {
	switch e.Action {
	case "output", "build-output":
		key := e.Package
		if key == "" {
			key = e.ImportPath
		}
		s.pkgOut[key] = append(s.pkgOut[key], e.Output)
	case "pass", "skip":
		s.ended[e.Package] = true
		if n := s.nPassed[e.Package]; n > 0 {
			fmt.Fprintf(s.w, "ok    %s  %.1fs\n", e.Package, e.Elapsed)
		}
	case "fail", "build-fail":
		s.packageFailed(e)
	}
}

// packageFailed prints what is known about a failed package.
func (s *Summary) packageFailed(e event) {
	pkg := e.Package
	if pkg == "" {
		return // a build failure: the package's own event follows
	}
	s.ended[pkg] = true
	fmt.Fprintf(s.w, "FAIL  %s  %.1fs\n", pkg, e.Elapsed)
	found := false
	for _, k := range s.order {
		t := s.tests[k]
		if t.pkg != pkg || (t.state != "fail" && t.state != "run") {
			continue
		}
		found = true
		fmt.Fprintf(s.w, "  %s %s\n", map[string]string{"fail": "failed:", "run": "did not end:"}[t.state], t.name)
		for _, l := range t.output {
			fmt.Fprint(s.w, "    ", l)
		}
	}
	if !found {
		s.broken = append(s.broken, pkg)
	}
	for _, k := range []string{e.FailedBuild, pkg} {
		for _, l := range s.pkgOut[k] {
			fmt.Fprint(s.w, "    ", l)
		}
		if k == pkg {
			break
		}
	}
}

// Counts are the numbers of the last line.
type Counts struct {
	Passed, Failed, Skipped int
}

// OK reports whether something ran and nothing failed.
func (c Counts) OK() bool { return c.Failed == 0 && c.Passed > 0 }

// String is the last line of a report.
func (c Counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
}

// Finish prints the skipped and the failed tests and returns the counts. The
// caller prints them, as the last line.
func (s *Summary) Finish() Counts {
	var c Counts
	var skipped, failed []string
	childFailed := map[string]bool{}
	for _, k := range s.order {
		t := s.tests[k]
		if t.state == "fail" || t.state == "run" {
			for i, ch := range t.name {
				if ch == '/' {
					childFailed[t.pkg+"\x00"+t.name[:i]] = true
				}
			}
		}
	}
	for _, k := range s.order {
		t := s.tests[k]
		switch {
		case t.state == "fail" || t.state == "run":
			if childFailed[k] {
				continue
			}
			c.Failed++
			failed = append(failed, t.pkg+" "+t.name)
		case t.parent:
		case t.state == "skip":
			c.Skipped++
			skipped = append(skipped, fmt.Sprintf("%s %s: %s", t.pkg, t.name, reason(t.output)))
		default:
			c.Passed++
		}
	}
	for _, p := range s.broken {
		c.Failed++
		failed = append(failed, p+" (does not build, or ended abnormally)")
	}
	s.list("Skipped", skipped)
	s.list("Failed", failed)
	if c.Passed+c.Failed == 0 {
		fmt.Fprintln(s.w, "no tests ran")
	}
	return c
}

// list prints one section of the end of a report.
func (s *Summary) list(title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	slices.Sort(lines)
	fmt.Fprintf(s.w, "\n%s:\n", title)
	for _, l := range lines {
		fmt.Fprintln(s.w, "  ", l)
	}
}

// reason is what a skipped test said, without the frame of `go test`.
func reason(output []string) string {
	var words []string
	for _, l := range output {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		// A script prints all that it did: its skip command has the reason.
		if _, why, ok := strings.Cut(l, "skip "); ok && strings.HasPrefix(l, "> ") {
			return strings.Trim(why, "'")
		}
		if i := strings.Index(l, ".go:"); i >= 0 {
			if _, rest, ok := strings.Cut(l[i+4:], ": "); ok {
				l = rest
			}
		}
		words = append(words, l)
	}
	if len(words) == 0 {
		return "no reason given"
	}
	return strings.Join(words, " ")
}
