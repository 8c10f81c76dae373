package policy

import (
	"path"
	"strings"
	"testing"
)

// siblings meet in lamd/ only, through interfaces that the consumer defines.
func siblings() []string {
	return []string{"membership", "scheduler", "pause", "migrate", "pmi"}
}

// layers lists what the packages at and below a directory may import of our own
// module, besides themselves and packages below them. A directory without an
// entry may import anything.
func layers() []struct {
	dir  string
	may  []string
	note string
} {
	return []struct {
		dir  string
		may  []string
		note string
	}{
		{"job", nil, "vocabulary: the standard library only"},
		{"internal/kernel", nil, "raw calls know nothing of us"},
		{"internal/pid1", nil, "what the inits share knows nothing of us"},
		{"internal/paths", []string{"job", "internal/podapi", "internal/control"}, "knows the names of sockets"},
		{"internal/hostfile", []string{"job"}, "a leaf"},
		{"internal/podapi", []string{"job"}, "types and client of a protocol"},
		{"internal/control", []string{"job", "internal/podapi"}, "types and client of a protocol"},
		{"image", []string{"job", "internal/kernel", "internal/podapi"}, "format and store; podapi names the files of an image"},
		{"internal/proc", []string{"job", "image", "internal/kernel"}, "one process"},
		{"internal/stream", []string{"job", "image", "internal/kernel", "internal/proc", "internal/podapi"}, "byte streams"},
		{"membership", []string{"job"}, "a sibling; gossip knows no jobs"},
		{"scheduler", []string{"job", "internal/podapi", "internal/control"}, "a sibling"},
		{"pmi", []string{"job", "internal/podapi"}, "a sibling"},
		{"pause", []string{"job", "image", "internal/proc", "internal/stream", "internal/kernel", "internal/podapi"}, "a sibling"},
		{"migrate", []string{"job", "image", "internal/proc", "internal/stream", "internal/kernel", "internal/podapi"}, "a sibling"},
		{"internal/nearest", nil, "a leaf"},
		{"internal/config", []string{"internal/nearest"}, "a leaf"},
		{"mpirun", []string{"job", "internal/config", "internal/nearest", "internal/control", "internal/podapi", "internal/paths", "internal/hostfile"}, "a client"},
	}
}

// TestImportDirections holds the drawing in docs/ARCHITECTURE.md.
func TestImportDirections(t *testing.T) {
	ex := except(map[string]string{})
	defer ex.check(t)
	for _, f := range source(t) {
		for imp, pos := range f.imports() {
			to, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			if f.test && (strings.HasSuffix(to, "test") || to == "internal/nsinit") {
				continue // helpers made for tests; private namespaces to test in
			}
			if why := forbidden(f.pkg, to); why != "" && !ex.has(f.pkg+" -> "+to) {
				t.Errorf("%s: %s imports %s: %s", f.at(pos), f.pkg, to, why)
			}
		}
	}
}

// forbidden says why package from may not import package to, "" when it may.
func forbidden(from, to string) string {
	if under(to, "cmd") {
		return "nobody imports a command"
	}
	for _, a := range siblings() {
		for _, b := range siblings() {
			if a != b && under(from, a) && under(to, b) {
				return "siblings never import each other; they meet in lamd/"
			}
		}
	}
	for _, l := range layers() {
		if !under(from, l.dir) || under(to, l.dir) {
			continue
		}
		if !underAny(to, l.may) {
			return "below " + l.dir + " (" + l.note + ") only " + orNothing(l.may) + " may be imported"
		}
	}
	return ""
}

func orNothing(l []string) string {
	if len(l) == 0 {
		return "nothing of ours"
	}
	return strings.Join(l, ", ")
}

// TestForbidden shows that the rule above catches what it should.
func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"pause", "migrate", true},
		{"membership/tree", "scheduler", true},
		{"membership", "membership/memnet", false},
		{"job", "image", true},
		{"image", "job", false},
		{"internal/kernel", "job", true},
		{"lamd", "pause", false},
		{"pmi", "lamd", true},
		{"lamd", "cmd/lamd", true},
	} {
		if got := forbidden(c.from, c.to) != ""; got != c.bad {
			t.Errorf("%s imports %s: forbidden %v, want %v", c.from, c.to, got, c.bad)
		}
	}
}

// TestDependenciesStayInTheirPackage keeps the large dependencies replaceable.
func TestDependenciesStayInTheirPackage(t *testing.T) {
	homes := []struct {
		dep string
		in  []string
	}{
		{"github.com/hashicorp/memberlist", []string{"membership"}},
		{"github.com/hashicorp/raft", []string{"scheduler"}},
		{"go.etcd.io/bbolt", []string{"scheduler"}},
		{"github.com/zeebo/xxh3", []string{"image", "internal/stream"}},
		{"github.com/klauspost/compress", []string{"image"}},
		{"github.com/spf13/cobra", []string{"internal/cli", "cmd", "lamd", "mpirun"}},
		{"github.com/pelletier/go-toml", []string{"internal/config", "internal/cli", "lamd"}},
	}
	ex := except(map[string]string{})
	defer ex.check(t)
	for _, f := range source(t) {
		for imp, pos := range f.imports() {
			for _, h := range homes {
				if (imp == h.dep || strings.HasPrefix(imp, h.dep+"/")) && !underAny(f.pkg, h.in) && !ex.has(f.pkg+" -> "+imp) {
					t.Errorf("%s: %s belongs in %s only", f.at(pos), imp, strings.Join(h.in, ", "))
				}
			}
			if imp == "C" {
				t.Errorf("%s: cgo: the binaries are built without", f.at(pos))
			}
		}
	}
}

// TestUnsafeStaysInKernel: unsafe only in internal/kernel/*_unsafe.go, and there
// only in files of that name.
func TestUnsafeStaysInKernel(t *testing.T) {
	ex := except(map[string]string{})
	defer ex.check(t)
	for _, f := range source(t) {
		pos, uses := f.imports()["unsafe"]
		base := path.Base(f.path)
		named := strings.Contains(base, "_unsafe")
		switch {
		case uses && (f.pkg != "internal/kernel" || !named) && !ex.has(f.path):
			t.Errorf("%s: unsafe outside of internal/kernel/*_unsafe.go", f.at(pos))
		case named && !uses && !f.test:
			t.Errorf("%s: named _unsafe without need", f.path)
		}
	}
}
