// Package e2e tests the whole: real binaries, a local cluster of real daemons
// in namespaces, unmodified MPICH programs, nodes that lose their power. It
// holds tests only. Most tests run as the user who runs the tests and, when that
// is root, once more as an ordinary user; those that show nothing of privilege
// run once, as an ordinary user if possible.
//
// LAM_TEST_LONG=1 adds the soak (LAM_SOAK_LOSSES losses over all its shapes,
// default 200; LAM_SOAK_SEED repeats the choices of an earlier run, as far as
// the moments allow) and the demonstration.
package e2e
