// Package image is the stored state of the processes of one pod at one epoch:
// the vocabulary (process.go, manifest.go), the file format (format.go) and
// the store on disk (jobdir.go, store.go).
//
// # Layout
//
//	STATE/jobs/JOB/USED               highest epoch number given back, decimal
//	STATE/jobs/JOB/EPOCH/COMMITTED    the log committed this epoch (Commit)
//	STATE/jobs/JOB/EPOCH/podN/manifest
//	STATE/jobs/JOB/EPOCH/podN/pPID.pages    memory of one process
//	STATE/jobs/JOB/EPOCH/podN/oID.pages     contents of one Object
//
// Directories are 0700, files 0600. A pod directory is written under a
// temporary name, every file of it is synced, it is renamed, and its parent is
// synced: it exists whole or not at all. Names are made here and never taken
// from a peer; every file is opened beneath its directory with openat2
// (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS).
//
// # Checks
//
// Every byte of every file is covered twice: by an XXH3 of its part (header,
// run of pages, index, trailer), seeded with what the part belongs to, and by
// the SHA-256 of the file, which is computed while the file is written or
// received. Reader.Verify checks the first kind at memory speed, before a
// recovery touches anything; Reader.VerifyDigests the second, before a cold
// restart and after receiving.
//
// # Concurrency
//
// A Writer's PageWriters may run in parallel, one goroutine each. A Reader and
// its PageReaders are safe for concurrent use. A JobDir is safe for concurrent
// use, also by several processes: all changes are atomic renames.
//
// The package knows nothing of how state is captured (pause) or rebuilt
// (migrate), and decides nothing: which epoch is committed or deleted is said
// by the scheduler's log.
package image
