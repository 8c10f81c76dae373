package policy

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// call is a use of a function of a standard package, as it stands in the source.
type call struct {
	pkg, name string
}

// calls visits every selector expression PKG.NAME of f whose PKG is an import
// named as its last path element.
func (f *file) calls(visit func(c call, pos token.Pos)) {
	imported := map[string]bool{}
	for p := range f.imports() {
		imported[p[strings.LastIndex(p, "/")+1:]] = true
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && imported[id.Name] {
			visit(call{id.Name, sel.Sel.Name}, sel.Pos())
		}
		return true
	})
}

// TestForbiddenCalls: functions that may stand in few places, or nowhere.
func TestForbiddenCalls(t *testing.T) {
	type rule struct {
		calls []call
		in    []string // directories where they may stand
		tests bool     // also in tests
		why   string
	}
	rules := []rule{
		{[]call{{"os", "Exit"}, {"log", "Fatal"}, {"log", "Fatalf"}, {"log", "Fatalln"}}, []string{"cmd", "bench/run"}, false, "a package never ends the process; return an error to cmd/"},
		{[]call{{"exec", "Command"}}, nil, false, "use exec.CommandContext: every wait has an end"},
		{[]call{
			{"syscall", "Syscall"},
			{"syscall", "Syscall6"},
			{"syscall", "RawSyscall"},
			{"syscall", "RawSyscall6"},
			{"unix", "Syscall"},
			{"unix", "Syscall6"},
			{"unix", "RawSyscall"},
			{"unix", "RawSyscall6"},
			{"unix", "SyscallNoError"},
			{"unix", "RawSyscallNoError"},
		}, []string{"internal/kernel"}, false, "raw system calls belong in internal/kernel"},
		{[]call{{"http", "DefaultClient"}, {"http", "Get"}, {"http", "Post"}, {"http", "DefaultServeMux"}}, nil, false, "no deadline, shared state; build a client or a mux"},
		{[]call{{"rand", "Seed"}}, nil, true, "global state"},
	}
	ex := except(map[string]string{})
	defer ex.check(t)
	for _, f := range source(t) {
		f.calls(func(c call, pos token.Pos) {
			for _, r := range rules {
				if f.test && !r.tests || underAny(f.pkg, r.in) {
					continue
				}
				for _, x := range r.calls {
					if c == x && !ex.has(f.path+" "+c.pkg+"."+c.name) {
						t.Errorf("%s: %s.%s: %s", f.at(pos), c.pkg, c.name, r.why)
					}
				}
			}
		})
	}
}

// TestNoInit: importing a package does nothing.
func TestNoInit(t *testing.T) {
	for _, f := range source(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: func init: importing a package does nothing; let the caller call", f.at(fn.Pos()))
			}
		}
	}
}

// TestNoMutableGlobals: package-level variables outside of tests are errors,
// compiled expressions, embedded files, interface checks, values set by the
// linker, or tables that no code of the package writes to.
func TestNoMutableGlobals(t *testing.T) {
	ex := except(map[string]string{})
	defer ex.check(t)
	byPkg := map[string][]*file{}
	for _, f := range source(t) {
		if !f.test {
			byPkg[f.pkg] = append(byPkg[f.pkg], f)
		}
	}
	for pkg, files := range byPkg {
		written := writtenNames(files)
		for _, f := range files {
			for _, v := range globals(f) {
				if why := v.mutable(written); why != "" && !ex.has(pkg+"."+v.name) {
					t.Errorf("%s: var %s: %s; put it in a struct or make it a const or a function", f.at(v.pos), v.name, why)
				}
			}
		}
	}
}

// global is one package-level variable.
type global struct {
	name    string
	pos     token.Pos
	value   ast.Expr // nil without initial value
	comment string
}

func globals(f *file) []global {
	var out []global
	for _, d := range f.ast.Decls {
		gen, ok := d.(*ast.GenDecl)
		if !ok || gen.Tok != token.VAR {
			continue
		}
		for _, s := range gen.Specs {
			vs := s.(*ast.ValueSpec)
			for i, n := range vs.Names {
				g := global{name: n.Name, pos: n.Pos(), comment: comments(gen.Doc, vs.Doc)}
				if i < len(vs.Values) {
					g.value = vs.Values[i]
				}
				out = append(out, g)
			}
		}
	}
	return out
}

// comments joins the raw text of comment groups, directives included.
func comments(groups ...*ast.CommentGroup) string {
	s := ""
	for _, g := range groups {
		if g == nil {
			continue
		}
		for _, c := range g.List {
			s += c.Text + "\n"
		}
	}
	return s
}

// mutable says why g is state, "" when it is not.
func (g global) mutable(written map[string]bool) string {
	switch {
	case g.name == "_":
		return ""
	case strings.HasPrefix(g.name, "err") || strings.HasPrefix(g.name, "Err"):
		return "" // a sentinel; staticcheck holds the name to the type
	case strings.Contains(g.comment, "//go:embed"):
		return ""
	case written[g.name]:
		return "is written to"
	case g.value == nil:
		if strings.Contains(g.comment, "-ldflags") {
			return ""
		}
		return "has no value, so somebody must set it"
	}
	switch e := g.value.(type) {
	case *ast.CompositeLit, *ast.BasicLit, *ast.FuncLit:
		return ""
	case *ast.CallExpr:
		return mutableCall(e)
	}
	return ""
}

// mutableCall judges what a call returns.
func mutableCall(e *ast.CallExpr) string {
	name := ""
	switch fn := e.Fun.(type) {
	case *ast.SelectorExpr:
		if id, ok := fn.X.(*ast.Ident); ok {
			name = id.Name + "." + fn.Sel.Name
		}
	case *ast.Ident:
		name = fn.Name
	}
	switch name {
	case "errors.New", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer", "template.Must",
		"netip.MustParseAddr", "netip.MustParsePrefix", "sync.OnceValue", "sync.OnceValues",
		"binary.Size", "int64", "uint64", "int", "uint32", "time.Duration", "crc32.MakeTable":
		return ""
	case "make", "new":
		return "is made empty, to be filled"
	}
	return "is the result of " + name + ", which may be shared state"
}

// writtenNames collects the identifiers that the functions of a package assign
// to, index into for writing, take the address of, or delete from, without
// having declared them themselves.
func writtenNames(files []*file) map[string]bool {
	written := map[string]bool{}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			local := localNames(fn)
			for _, e := range writes(fn) {
				if id := base(e); id != nil && !local[id.Name] {
					written[id.Name] = true
				}
			}
		}
	}
	return written
}

// writes lists the expressions that fn changes or might let others change.
func writes(fn *ast.FuncDecl) []ast.Expr {
	var out []ast.Expr
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.AssignStmt:
			if s.Tok != token.DEFINE {
				out = append(out, s.Lhs...)
			}
		case *ast.IncDecStmt:
			out = append(out, s.X)
		case *ast.UnaryExpr:
			if s.Op == token.AND {
				out = append(out, s.X)
			}
		case *ast.CallExpr:
			if id, ok := s.Fun.(*ast.Ident); ok && id.Name == "delete" && len(s.Args) > 0 {
				out = append(out, s.Args[0])
			}
		}
		return true
	})
	return out
}

// base is the variable that an expression like x.f[i] is part of.
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// localNames lists every name that fn declares: parameters, results, variables.
func localNames(fn *ast.FuncDecl) map[string]bool {
	local := map[string]bool{}
	add := func(e ast.Expr) {
		if id, ok := e.(*ast.Ident); ok {
			local[id.Name] = true
		}
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.Field:
			for _, id := range s.Names {
				local[id.Name] = true
			}
		case *ast.ValueSpec:
			for _, id := range s.Names {
				local[id.Name] = true
			}
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				for _, l := range s.Lhs {
					add(l)
				}
			}
		case *ast.RangeStmt:
			if s.Tok == token.DEFINE {
				add(s.Key)
				add(s.Value)
			}
		}
		return true
	})
	return local
}
