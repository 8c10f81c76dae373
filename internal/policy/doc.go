// Package policy keeps the rules of this repository: its tests read the source
// of the whole module and fail, naming file and line, where a rule is broken.
//
// The rules are those of CONTRIBUTING.md: who may import whom, where unsafe and
// os.Exit may stand, no hidden state in packages, comments on what is exported,
// sizes of files and functions, and a page of documentation for every command.
// A rule that must be broken somewhere has a list of exceptions beside it, each
// with its reason; an exception that is no longer needed fails, too.
//
// The package has no code of its own outside of its tests.
package policy
