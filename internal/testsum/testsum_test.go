package testsum

import (
	"strings"
	"testing"
)

// line is short for one event.
func line(action, pkg, test, output string) string {
	s := `{"Action":"` + action + `","Package":"` + pkg + `"`
	if test != "" {
		s += `,"Test":"` + test + `"`
	}
	if output != "" {
		s += `,"Output":"` + output + `\n"`
	}
	return s + "}\n"
}

func TestCounts(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Counts
		ok       bool
		says     []string // parts of the report
	}{
		{"nothing", "", Counts{}, false, []string{"no tests ran"}},
		{
			"one passes", line("run", "p", "TestA", "") + line("pass", "p", "TestA", "") + line("pass", "p", "", ""),
			Counts{1, 0, 0},
			true,
			[]string{"ok    p"},
		},
		{
			"leaves are counted", line("run", "p", "TestA", "") + line("run", "p", "TestA/x", "") + line("run", "p", "TestA/y", "") +
				line("pass", "p", "TestA/x", "") + line("pass", "p", "TestA/y", "") + line("pass", "p", "TestA", "") + line("pass", "p", "", ""),
			Counts{2, 0, 0},
			true, nil,
		},
		{
			"a failing leaf fails once", line("run", "p", "TestA", "") + line("run", "p", "TestA/x", "") +
				line("output", "p", "TestA/x", "    a_test.go:3: broken") + line("fail", "p", "TestA/x", "") + line("fail", "p", "TestA", "") + line("fail", "p", "", ""),
			Counts{0, 1, 0},
			false,
			[]string{"FAIL  p", "broken", "p TestA/x"},
		},
		{
			"a parent may fail by itself", line("run", "p", "TestA", "") + line("run", "p", "TestA/x", "") +
				line("pass", "p", "TestA/x", "") + line("fail", "p", "TestA", "") + line("fail", "p", "", ""),
			Counts{1, 1, 0},
			false,
			[]string{"p TestA"},
		},
		{
			"skips say why", line("run", "p", "TestA", "") + line("output", "p", "TestA", "=== RUN   TestA") +
				line("output", "p", "TestA", "    a_test.go:9: needs gcc") + line("skip", "p", "TestA", "") +
				line("run", "p", "TestB", "") + line("pass", "p", "TestB", "") + line("pass", "p", "", ""),
			Counts{1, 0, 1},
			true,
			[]string{"p TestA: needs gcc"},
		},
		{
			"a skipped script says why", line("run", "p", "TestS/demo", "") + line("output", "p", "TestS/demo", "    testscript.go:5: WORK=$WORK") +
				line("output", "p", "TestS/demo", "        > [!demo] skip 'run by one kind of user'") + line("skip", "p", "TestS/demo", "") +
				line("run", "p", "TestB", "") + line("pass", "p", "TestB", "") + line("pass", "p", "", ""),
			Counts{1, 0, 1},
			true,
			[]string{"p TestS/demo: run by one kind of user"},
		},
		{
			"a panic fails what was running", line("run", "p", "TestA", "") + line("output", "p", "TestA", "panic: no") + line("fail", "p", "", ""),
			Counts{0, 1, 0},
			false,
			[]string{"did not end: TestA", "panic: no"},
		},
		{
			"a build failure counts", `{"Action":"build-output","ImportPath":"p [p.test]","Output":"x.go:1: undefined\n"}` + "\n" +
				`{"Action":"build-fail","ImportPath":"p [p.test]"}` + "\n" +
				`{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}` + "\n",
			Counts{0, 1, 0},
			false,
			[]string{"undefined", "p (does not build"},
		},
		{
			"other lines pass", "go: downloading x\n" + line("run", "p", "TestA", "") + line("pass", "p", "TestA", ""),
			Counts{1, 0, 0},
			true,
			[]string{"go: downloading x"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			s := New(&out)
			if err := s.Read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			got := s.Finish()
			if got != c.want || got.OK() != c.ok {
				t.Errorf("got %v ok=%v, want %v ok=%v", got, got.OK(), c.want, c.ok)
			}
			for _, part := range c.says {
				if !strings.Contains(out.String(), part) {
					t.Errorf("report lacks %q:\n%s", part, out.String())
				}
			}
		})
	}
}

func TestLastLine(t *testing.T) {
	if got := (Counts{12, 0, 3}).String(); got != "12 passed, 0 failed, 3 skipped" {
		t.Error(got)
	}
}
