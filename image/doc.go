// Package image is the stored state of the processes of one pod at one epoch:
// the vocabulary (process.go, manifest.go), the file format (format.go), what
// epochs share (keep.go, share.go) and the store on disk (jobdir.go, store.go).
//
// # Layout
//
//	STATE/jobs/JOB/USED               highest epoch number given back, decimal
//	STATE/jobs/JOB/EPOCH/COMMITTED    the log committed this epoch (Commit)
//	STATE/jobs/JOB/EPOCH/podN/manifest
//	STATE/jobs/JOB/EPOCH/podN/pPID-E.pages    memory of one process, written by epoch E
//	STATE/jobs/JOB/EPOCH/podN/oID-E.pages     contents of one Object, likewise
//
// Directories are 0700, files 0600. A pod directory is written under a
// temporary name, every file of it is synced, it is renamed, and its parent is
// synced: it exists whole or not at all. Names are made here and never taken
// from a peer; every file is opened beneath its directory with openat2
// (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS).
//
// # Epochs that share files
//
// A page file stores the pages that its epoch wrote, and an index of all pages
// of the process, also of those in the files of earlier epochs. Those files are
// hard links in the directory of the epoch. So
//
//   - every epoch is whole by itself: it is opened, checked, sent and restored
//     without a look at any other one;
//   - removing an epoch takes nothing from the others: the file system counts
//     the links, and a crash cannot make the count wrong;
//   - nothing has to be merged: a writer gathers the pages of the files anew
//     of which the least is in use, when an epoch would have more pages that it
//     does not need than its base has pages, or more than eight files per
//     process. Its files are about twice as large as a whole image, at most;
//   - a node that receives an epoch links what it has, by name, size and
//     SHA-256, and is sent the rest, be it all of it.
//
// Which pages are the same is said by the caller (pause tracks writes), and by
// nothing else; the first epoch, and one without a base that can be read, is
// written whole. Where links are refused, everything is written and sent.
// Chains of differences, the usual way, would need an order of deletion, a merge
// that reads and writes all again, and every member of the chain at a restore.
//
// The price: a file that is damaged on a disk is damaged for all epochs on that
// node that link it. It is found by each of them, by name, before anything is
// restored; other nodes have inodes of their own, from which SetAside and
// Receive heal the image. After SetAside nothing is linked unread.
//
// # Checks
//
//	what            covers                         promises
//	XXH3 of a page  4096 bytes, unpacked           no error of disk, memory or network; nothing against intent
//	XXH3 of index   segments, runs, sums           the same
//	XXH3 of trailer trailer and header, thereby    that the file is the one of that job, epoch, pod and
//	                index, thereby all pages       process, and the very one that the manifest means (Tails)
//	SHA-256 (of     a whole file                   also against intent, as the list of files in the log is
//	4 MB pieces)
//	listDigest      names, sizes, SHA-256s         identity of an image; SetDigest that of an epoch
//
// Every byte is hashed once each way while it is written, and once by XXH3 when
// it is received: the manifest is compared by SHA-256 with what the log says, and
// vouches for the trailers, they for the rest. Reader.Verify checks all XXH3 at
// memory speed, before a recovery touches anything; Reader.VerifyDigests all
// SHA-256, before ranks are restarted of which none is alive any more.
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
