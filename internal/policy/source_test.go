package policy

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// module is the prefix of our own import paths.
const module = "github.com/lampause/lampause/"

// file is one parsed source file. Paths are relative to the module's root, with
// forward slashes.
type file struct {
	path  string
	pkg   string // directory; "." for the root
	test  bool
	lines int
	fset  *token.FileSet
	ast   *ast.File
}

// at formats a position in f as path:line.
func (f *file) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", f.path, f.fset.Position(p).Line)
}

// imports lists the import paths of f.
func (f *file) imports() map[string]token.Pos {
	m := make(map[string]token.Pos, len(f.ast.Imports))
	for _, s := range f.ast.Imports {
		if p, err := strconv.Unquote(s.Path.Value); err == nil {
			m[p] = s.Pos()
		}
	}
	return m
}

// source parses every Go file of the module, once for all tests.
func source(t *testing.T) []*file {
	t.Helper()
	files, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("found only %d Go files: is this the whole module?", len(files))
	}
	return files
}

// load is source's cache; parsing takes about a second.
var load = sync.OnceValues(func() ([]*file, error) {
	dir, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	var files []*file
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skipDir(filepath.ToSlash(rel)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parse(p, filepath.ToSlash(rel))
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	return files, err
})

// skipDir tells directories that hold no source of ours.
func skipDir(rel string) bool {
	base := path.Base(rel)
	return rel == "bin" || rel == "bench/out" || base == "testdata" || (strings.HasPrefix(base, ".") && rel != ".")
}

func parse(p, rel string) (*file, error) {
	src, err := os.ReadFile(p)
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, rel, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	return &file{
		path: rel, pkg: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"),
		lines: bytes.Count(src, []byte("\n")), fset: fset, ast: tree,
	}, nil
}

// exceptions is the list of places where a rule does not hold, with reasons. It
// notices entries that nobody needs.
type exceptions struct {
	reason map[string]string
	used   map[string]bool
}

func except(reason map[string]string) *exceptions {
	return &exceptions{reason: reason, used: map[string]bool{}}
}

// has reports whether key is excepted.
func (e *exceptions) has(key string) bool {
	if _, ok := e.reason[key]; ok {
		e.used[key] = true
		return true
	}
	return false
}

// check fails for entries without use or reason.
func (e *exceptions) check(t *testing.T) {
	t.Helper()
	for k, why := range e.reason {
		if !e.used[k] {
			t.Errorf("exception %q is no longer needed: remove it", k)
		}
		if why == "" {
			t.Errorf("exception %q has no reason", k)
		}
	}
}

// under reports whether package pkg is dir or below it.
func under(pkg, dir string) bool {
	return pkg == dir || strings.HasPrefix(pkg, dir+"/")
}

// underAny is under for several directories.
func underAny(pkg string, dirs []string) bool {
	for _, d := range dirs {
		if under(pkg, d) {
			return true
		}
	}
	return false
}
