package policy

import (
	"go/ast"
	"strings"
	"testing"
)

// The limits. What is longer is split where a reader would look for the pieces.
const (
	maxFileLines = 600
	maxTestLines = 800 // tables and stories included
	maxFuncLines = 80
	maxMainLines = 60
)

// TestSizes bounds files and functions; tables in tests are not functions.
func TestSizes(t *testing.T) {
	ex := except(map[string]string{
		"internal/proc/names.go syscallName": "one case per system call",
		"cmd/lamd/main.go":                   "five kinds of processes in one binary, with a line of usage and a case for each",
	})
	defer ex.check(t)
	for _, f := range source(t) {
		limit := maxFileLines
		if f.test {
			limit = maxTestLines
		}
		if under(f.pkg, "cmd") && !f.test {
			limit = maxMainLines
		}
		if f.lines > limit && !ex.has(f.path) {
			t.Errorf("%s: %d lines, at most %d", f.path, f.lines, limit)
		}
		if f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			n := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
			if n > maxFuncLines && !ex.has(f.path+" "+fn.Name.Name) {
				t.Errorf("%s: func %s has %d lines, at most %d", f.at(fn.Pos()), fn.Name.Name, n, maxFuncLines)
			}
		}
	}
}

// TestPackageComments: every package says what it is for, in one place.
func TestPackageComments(t *testing.T) {
	doc := map[string][]*file{}
	for _, f := range source(t) {
		if f.test {
			continue
		}
		if _, ok := doc[f.pkg]; !ok {
			doc[f.pkg] = nil
		}
		if f.ast.Doc == nil {
			continue
		}
		doc[f.pkg] = append(doc[f.pkg], f)
		want := "Package " + f.ast.Name.Name + " "
		if f.ast.Name.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(f.ast.Doc.Text(), want) {
			t.Errorf("%s: the package comment does not begin with %q", f.at(f.ast.Doc.Pos()), want)
		}
	}
	for pkg, files := range doc {
		switch len(files) {
		case 0:
			t.Errorf("%s: no package comment", pkg)
		case 1:
		default:
			t.Errorf("%s: %d package comments, %s and %s: keep one", pkg, len(files), files[0].path, files[1].path)
		}
	}
}

// TestExportedComments: what is exported is explained.
func TestExportedComments(t *testing.T) {
	for _, f := range source(t) {
		if f.test || f.ast.Name.Name == "main" {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedRecv(d) && d.Doc == nil {
					t.Errorf("%s: %s is exported and has no comment", f.at(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					undocumented(t, f, d, s)
				}
			}
		}
	}
}

// exportedRecv reports whether fn is a function, or a method of an exported type.
func exportedRecv(fn *ast.FuncDecl) bool {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return true
	}
	e := fn.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// undocumented reports exported names of one declaration without a comment of
// their own, of their line or of their group.
func undocumented(t *testing.T, f *file, d *ast.GenDecl, s ast.Spec) {
	t.Helper()
	switch s := s.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
			t.Errorf("%s: type %s is exported and has no comment", f.at(s.Pos()), s.Name.Name)
		}
	case *ast.ValueSpec:
		for _, n := range s.Names {
			if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
				t.Errorf("%s: %s is exported and has no comment", f.at(n.Pos()), n.Name)
			}
		}
	}
}
