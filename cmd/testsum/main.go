// Command testsum reads `go test -json` from its standard input, reports what
// failed and what was skipped, and ends with one line: "N passed, N failed, N
// skipped". Its exit status is 1 when something failed or nothing ran.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/lampause/lampause/internal/testsum"
)

func main() {
	// A run that is broken off is reported, too: the end of the input ends us.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	s := testsum.New(os.Stdout)
	if err := s.Read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c := s.Finish()
	fmt.Println(c)
	if !c.OK() {
		os.Exit(1)
	}
}
