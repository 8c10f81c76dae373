// Package mpirun is the launcher client: it turns an MPI-style command line
// into a job.Spec, submits it, and stands between the job and the terminal
// until the job ends. `mpirun`, `lam run` and `lam attach` share it.
//
// The client holds nothing that the job needs: when it dies, the job goes on,
// and `lam attach` continues where the output stopped. When the lamd that it
// talks to dies, it goes on with another one.
//
// Goroutines of a running session: one reads the job's output, one waits for
// its end, one forwards stdin, one handles signals; Main returns when the
// first two have ended. A read of stdin that blocks is left behind: there is
// no way to interrupt it, and the process is about to exit.
//
// Output passes three stages: replay drops what a rollback produced again,
// mux keeps the lines of different ranks apart, a positions file remembers
// how much reached the reader. Lock order: mux.mu, then positions.
package mpirun
