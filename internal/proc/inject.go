package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/kernel"
)

// Call is a system call to be injected. Ret is the kernel's raw answer, valid
// when Done.
type Call struct {
	Nr   uint64
	Args [6]uint64
	Ret  int64
	Done bool // it was carried out
}

// Err returns the call's failure as a *kernel.Error, or nil.
func (c *Call) Err() error {
	if !c.Done {
		return fmt.Errorf("inject %s: not carried out", syscallName(c.Nr))
	}
	if errno := Errno(c.Ret); errno != 0 {
		return &kernel.Error{Op: "inject " + syscallName(c.Nr), Errno: errno}
	}
	return nil
}

// Errno returns the error number in a raw system call result, or 0.
func Errno(ret int64) unix.Errno {
	if ret < 0 && ret >= -4095 {
		return unix.Errno(-ret)
	}
	return 0
}

// Batch collects system calls and their data. Only one batch of a Frozen may
// be in use at a time: they share the stub's data area.
type Batch struct {
	f     *Frozen
	th    *Thread
	calls []*Call
	data  []byte
	addr  uint64 // of data[0], 0 when the stub could not be mapped
	err   error  // of a building step; reported by Run
}

// Batch begins a batch that th will carry out. It maps the stub when that is
// not there yet; a failure of that is reported by Run.
func (f *Frozen) Batch(th *Thread) *Batch {
	b := &Batch{f: f, th: th}
	b.err = f.t.Do(func() error { return f.ensureStub(context.Background(), th) })
	b.addr = f.stub + stubData
	return b
}

// Bytes stores a copy of p in the data area and returns its address in the
// process, 16-aligned.
func (b *Batch) Bytes(p []byte) uint64 {
	at := b.Alloc(len(p))
	copy(b.data[at-b.addr:], p)
	return at
}

// String stores s with a terminating zero byte.
func (b *Batch) String(s string) uint64 { return b.Bytes(append([]byte(s), 0)) }

// Words stores 64-bit words.
func (b *Batch) Words(w ...uint64) uint64 {
	p := make([]byte, 0, 8*len(w))
	for _, x := range w {
		p = binary.LittleEndian.AppendUint64(p, x)
	}
	return b.Bytes(p)
}

// Alloc reserves n zero bytes and returns their address. Some 760 KB are there
// in all; beyond, Run fails.
func (b *Batch) Alloc(n int) uint64 {
	at := (len(b.data) + 15) &^ 15
	if at+n > stubCalls-stubData && b.err == nil {
		b.err = errorf(b.f.PID, "inject: %d bytes of data do not fit", at+n)
	}
	b.data = append(b.data, make([]byte, at+n-len(b.data))...)
	return b.addr + uint64(at)
}

// Call appends a system call; at most six arguments.
func (b *Batch) Call(nr uint64, args ...uint64) *Call {
	c := &Call{Nr: nr}
	copy(c.Args[:], args)
	b.calls = append(b.calls, c)
	return c
}

// Read returns n bytes from addr, an address inside the process, after Run.
func (b *Batch) Read(addr uint64, n int) ([]byte, error) {
	p := make([]byte, n)
	return p, b.f.ReadMem(addr, p)
}

// Run carries the calls out in order and stops at the first that fails; later
// ones are not Done. The batch is empty afterwards; its data remains valid, so
// that more calls can follow.
//
// Expected errors: *kernel.Error of the failed call; kernel.ErrGone;
// kernel.ErrTimeout; ErrUnsupported.
func (b *Batch) Run(ctx context.Context) error { return b.run(ctx, true) }

// RunAll carries all calls out, whatever they answer; look at each Call's Err.
func (b *Batch) RunAll(ctx context.Context) error { return b.run(ctx, false) }

func (b *Batch) run(ctx context.Context, strict bool) error {
	if b.err != nil {
		return b.err
	}
	calls := b.calls
	b.calls = nil
	return b.f.t.Do(func() error {
		for len(calls) > 0 {
			n := min(len(calls), maxRecords)
			if err := b.f.runCalls(ctx, b.th, b.data, calls[:n], strict); err != nil {
				return err
			}
			calls = calls[n:]
		}
		return nil
	})
}

// runCalls has th carry out at most maxRecords calls.
func (f *Frozen) runCalls(ctx context.Context, th *Thread, data []byte, calls []*Call, strict bool) error {
	refused := f.checkCalls(&calls)
	if len(calls) > 0 {
		if err := f.writeBatch(data, calls); err != nil {
			return err
		}
		left, err := f.runStub(ctx, th, uint64(len(calls)), strict, nil)
		if err != nil {
			return fmt.Errorf("proc: inject %s...: %w", syscallName(calls[0].Nr), err)
		}
		if err := f.readResults(calls[:uint64(len(calls))-left]); err != nil {
			return err
		}
	}
	if strict {
		for _, c := range calls {
			if !c.Done {
				break
			}
			if errno := Errno(c.Ret); errno != 0 {
				return &kernel.Error{Op: "inject " + syscallName(c.Nr), PID: f.PID, Errno: errno}
			}
		}
	}
	return refused
}

// checkCalls asks the hook about each call and cuts the list at the first that
// it refuses.
func (f *Frozen) checkCalls(calls *[]*Call) error {
	for i, c := range *calls {
		if err := f.sys.Check("inject "+syscallName(c.Nr), f.PID); err != nil {
			*calls = (*calls)[:i]
			return err
		}
	}
	return nil
}

func (f *Frozen) writeBatch(data []byte, calls []*Call) error {
	rec := make([]byte, 0, recordSize*len(calls))
	for _, c := range calls {
		rec = binary.LittleEndian.AppendUint64(rec, c.Nr)
		for _, a := range c.Args {
			rec = binary.LittleEndian.AppendUint64(rec, a)
		}
		rec = binary.LittleEndian.AppendUint64(rec, 0)
	}
	at := f.stub + stubCalls
	local, remote := [][]byte{rec}, []kernel.Range{{Start: at, End: at + uint64(len(rec))}}
	if len(data) > 0 {
		at := f.stub + stubData
		local, remote = append(local, data), append(remote, kernel.Range{Start: at, End: at + uint64(len(data))})
	}
	return f.WriteMemV(local, remote)
}

func (f *Frozen) readResults(calls []*Call) error {
	rec := make([]byte, recordSize*len(calls))
	if err := f.ReadMem(f.stub+stubCalls, rec); err != nil {
		return err
	}
	for i, c := range calls {
		c.Ret = int64(binary.LittleEndian.Uint64(rec[i*recordSize+56:]))
		c.Done = true
	}
	return nil
}

// runStub has th run the stub over n records and returns how many it did not
// reach. At ptrace events (fork, clone, exec) it calls onEvent, when given,
// and goes on unless that answers true. Afterwards th has its own registers
// and mask again.
func (f *Frozen) runStub(ctx context.Context, th *Thread, n uint64, strict bool,
	onEvent func(event int) (bool, error),
) (left uint64, err error) {
	if err := f.abortRseq(th); err != nil {
		return n, err
	}
	r := callRegs(th, f.stub)
	r.R12, r.R13, r.R14 = f.stub+stubCalls, n, 0
	r.Rsp = f.stub + stubCalls // not on an alternate signal stack, which could not be changed then
	if strict {
		r.R14 = 1
	}
	defer func() { err = errors.Join(err, f.settle(th)) }()
	if err := f.load(th, &r); err != nil {
		return n, err
	}
	ended := false
	now, err := f.runTo(ctx, th, f.stub+stubEnd, func(event int) (bool, error) {
		if onEvent == nil {
			return false, nil
		}
		end, err := onEvent(event)
		ended = end
		return end, err
	})
	if err != nil {
		return n, err
	}
	if ended {
		return 0, nil
	}
	return now.R13, nil
}

// runTo lets th run until it stops behind the int3 that ends at address end,
// and returns its registers there. At ptrace events it calls onEvent and goes
// on unless that answers true.
func (f *Frozen) runTo(ctx context.Context, th *Thread, end uint64, onEvent func(event int) (bool, error)) (now kernel.Regs, err error) {
	deadline := deadlineOf(ctx)
	for {
		th.running = true
		if err := f.sys.Cont(th.TID, 0); err != nil {
			th.running = false
			return now, err
		}
		ws, err := f.wait(th, deadline)
		if err != nil {
			return now, err
		}
		event := int(ws) >> 16
		if event != 0 && event != kernel.EventStop {
			if stop, err := onEvent(event); err != nil || stop {
				return now, err
			}
			continue
		}
		if event != 0 || ws.StopSignal() == unix.SIGSTOP {
			if time.Now().After(deadline) { // stops that keep coming
				return now, kernel.ErrTimeout
			}
			continue
		}
		if now, err = f.sys.GetRegs(th.TID); err != nil {
			return now, err
		}
		if now.Rip == end {
			return now, nil
		}
		if ws.StopSignal() != unix.SIGTRAP {
			return now, errorf(f.PID, "inject: thread %d: signal %v at %#x", th.TID, ws.StopSignal(), now.Rip)
		}
		if time.Now().After(deadline) {
			return now, kernel.ErrTimeout
		}
	}
}

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

func sortRanges(r []kernel.Range) {
	sort.Slice(r, func(i, j int) bool { return r[i].Start < r[j].Start })
}
