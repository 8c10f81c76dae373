// Package pause takes coordinated checkpoints of the ranks of one pod and puts
// the same live processes back to one: the job pause. It works from the
// outside, through internal/proc; the programs do not cooperate.
//
// # Phases
//
// A [Pod] offers the steps of podapi, each as one method. The coordinator
// calls a step on every pod of the job before the next step on any:
//
//	checkpoint: Freeze -> CaptureSend -> CaptureRecv -> Resume -> Write -> Commit
//	            Abandon at any point: the ranks run on, nothing is kept
//	recovery:   Stop -> Rollback -> Release (survivors)
//	            Adopt (pods that migrate/ rebuilt), then as any other
//	other:      Suspend -> Continue; Preflight; Prepare
//
// Only the time between Freeze and Resume stalls the ranks. Which step is
// legal when is decided by a pure state machine (step.go, testdata/*.txt);
// repeating the last step is harmless and answers the same.
//
// # What is kept
//
// The state of an epoch is an image.Manifest and the contents of memory. The
// copy in RAM serves two purposes: Write stores it in the background, and
// Rollback copies back from it. Two generations exist at most: the committed
// epoch, and the one in the making. An adopted pod has its image file instead.
//
// # Order of a rollback
//
// stop -> end threads born since -> flush signals -> brk and mappings ->
// pages -> descriptors -> signal handlers and timers -> threads that ended
// since -> per-thread state -> pending signals -> unmap the stub -> registers.
// Until the first change a failure leaves the rank as it was; from then on a
// failure makes it a lost rank, named in Report.LostRanks, to be restored from
// its image. Rollback never leaves a rank running: Release does that.
//
// # Refusals
//
// What cannot be captured is an obstacle with a name (*[Refusal]). A refused
// round leaves the ranks running as they were.
//
// # Goroutines and locks
//
// One tracer goroutine per process lives as long as the Pod knows the process.
// Ranks are worked on in parallel, and each one's memory by several workers.
// The methods of Pod may be called from any goroutine; a mutex makes steps run
// one at a time, except Write, which may run beside later steps.
package pause
