// Package bench holds the programs that lampause is shown and measured with,
// and the measurements: the NAS kernels EP, CG, IS and MG in C and MPI
// (bench/nas), a program of chosen memory and change (bench/mpi), and Suite,
// which runs them under mpirun and under mpiexec.hydra in turns and sums up
// medians and spreads.
//
// Everything runs through the same commands that users type; the package
// reaches into no part of the runtime. It refuses to measure with more ranks
// than cores, where busy polling makes every figure meaningless.
package bench
