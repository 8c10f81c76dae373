// Package proctool is `lam proc`: checkpoint, roll back and restart the
// processes of any Linux program, one tree at a time, without a cluster. It
// wires pause, migrate, image and nsinit together.
//
//	lam proc run CMD...                      in private pid namespaces
//	lam proc checkpoint --pid P --out DIR    while it runs; --stop, --kill
//	lam proc rollback --pid P DIR            the same live processes
//	lam proc restart DIR[@EPOCH]             processes that are gone
//	lam proc inspect DIR[@EPOCH]             what is stored
//	lam proc check --pid P                   every obstacle, by name
//
// DIR holds images as a job's directory does (package image), numbered from 1.
// Process ids on the command line are those that the caller sees.
//
// Every command is one goroutine that calls the packages named above, plus one
// that forwards signals.
package proctool
