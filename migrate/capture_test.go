package migrate_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/kernel"
	"github.com/lampause/lampause/internal/proc"
	"github.com/lampause/lampause/job"
)

// capture stops process pid, writes its image and kills it: an independent,
// plain witness of the format for one process without children. Descriptors
// 0 to 2 are external; of others it knows files, eventfds, epoll sets and
// pipes within the process.
func capture(ctx context.Context, t testing.TB, pid int, dir string) {
	t.Helper()
	tr := proc.NewTracer(kernel.New(nil))
	defer tr.Close()
	f, err := tr.Freeze(ctx, pid)
	if err != nil {
		t.Fatal(err)
	}
	err = capturing(ctx, f, dir)
	if err = errors.Join(err, f.Kill()); err != nil {
		t.Fatal(err)
	}
}

func capturing(ctx context.Context, f *proc.Frozen, dir string) (err error) {
	m := &image.Manifest{Node: "here"}
	if m.Host, err = image.LocalHost(); err != nil {
		return err
	}
	p := image.Process{Seccomp: 0}
	if err := captureStatus(f, &p); err != nil {
		return err
	}
	for _, th := range f.Threads {
		t, err := captureThread(ctx, f, th)
		if err != nil {
			return err
		}
		p.Threads = append(p.Threads, t)
	}
	if err := captureAsked(ctx, f, &p); err != nil {
		return err
	}
	if err := captureFDs(f, m, &p); err != nil {
		return err
	}
	w, err := image.CreateAt(dir, image.Identity{Job: 1, Epoch: 1, Incarnation: 1}, image.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if err := captureMaps(f, w, &p); err != nil {
		return err
	}
	m.Processes, m.Ranks = []image.Process{p}, map[job.Rank]int{0: p.PID}
	_, err = w.Commit(ctx, m)
	return err
}

func captureStatus(f *proc.Frozen, p *image.Process) error {
	st, err := proc.ReadStatus(f.PID)
	if err != nil {
		return err
	}
	s, err := proc.ReadStat(f.PID)
	if err != nil {
		return err
	}
	dir := "/proc/" + strconv.Itoa(f.PID)
	p.PID, p.PGID, p.SID = st.Inner(), st.NSPgid[len(st.NSPgid)-1], st.NSSid[len(st.NSSid)-1]
	p.Comm, p.Umask, p.Dumpable = s.Comm, st.Umask, 1
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return err
	}
	if p.Exe, err = image.IdentifyFile(exe); err != nil {
		return err
	}
	if p.Cwd, err = os.Readlink(dir + "/cwd"); err != nil {
		return err
	}
	auxv, err := os.ReadFile(dir + "/auxv")
	p.MM = image.MM{
		StartCode: s.StartCode, EndCode: s.EndCode, StartData: s.StartData, EndData: s.EndData,
		StartBrk: s.StartBrk, StartStack: s.StartStack, ArgStart: s.ArgStart, ArgEnd: s.ArgEnd,
		EnvStart: s.EnvStart, EnvEnd: s.EnvEnd, Auxv: auxv,
	}
	return err
}

func captureThread(ctx context.Context, f *proc.Frozen, th *proc.Thread) (t image.Thread, err error) {
	st, err := proc.ReadStatus(th.TID)
	if err != nil {
		return t, err
	}
	sys := f.Tracer().Sys()
	rs, err1 := f.Rseq(th)
	var err2, err3, err4 error
	t.XState, err2 = f.XState(th)
	t.RobustHead, t.RobustLen, err3 = sys.GetRobustList(th.TID)
	t.Affinity, err4 = sys.Affinity(th.TID)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return t, err
	}
	b := f.Batch(th)
	out := b.Alloc(32)
	b.Call(unix.SYS_SIGALTSTACK, 0, out)
	b.Call(unix.SYS_PRCTL, unix.PR_GET_TID_ADDRESS, out+24)
	if err := b.Run(ctx); err != nil {
		return t, err
	}
	raw, err := b.Read(out, 32)
	le := binary.LittleEndian
	t.AltStack = image.AltStack{SP: le.Uint64(raw), Flags: int32(le.Uint32(raw[8:])), Size: le.Uint64(raw[16:])} //nolint:gosec // bits
	t.ClearTID = le.Uint64(raw[24:])
	t.RseqAddr, t.RseqLen, t.RseqSig = rs.Addr, rs.Len, rs.Sig
	regs := proc.Normalise(th.Regs)
	t.TID, t.Comm, t.Regs, t.SigMask = st.Inner(), st.Name, kernel.Words(&regs), th.SigMask
	return t, err
}

func captureAsked(ctx context.Context, f *proc.Frozen, p *image.Process) error {
	b := f.Batch(f.Leader())
	brk := b.Call(unix.SYS_BRK, 0)
	at := b.Alloc(64 * 32)
	for i := range uint64(64) {
		b.Call(unix.SYS_RT_SIGACTION, i+1, 0, at+32*i, 8)
	}
	if err := b.Run(ctx); err != nil {
		return err
	}
	raw, err := b.Read(at, 64*32)
	if err != nil {
		return err
	}
	p.MM.Brk = uint64(brk.Ret) //nolint:gosec // an address
	le := binary.LittleEndian
	for i := range 64 {
		w := raw[32*i:]
		p.Actions = append(p.Actions, image.SigAction{Handler: le.Uint64(w), Flags: le.Uint64(w[8:]), Restorer: le.Uint64(w[16:]), Mask: le.Uint64(w[24:])})
	}
	return nil
}

func captureFDs(f *proc.Frozen, m *image.Manifest, p *image.Process) error {
	nums, err := proc.FDs(f.PID)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(f.PID, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	for _, n := range nums {
		d, err := captureFD(f, pidfd, n)
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", n, err)
		}
		m.Descriptions = append(m.Descriptions, d)
		info, err := proc.ReadFDInfo(f.PID, n)
		if err != nil {
			return err
		}
		p.FDs = append(p.FDs, image.FD{Num: n, Desc: len(m.Descriptions), CloExec: info.Flags&unix.O_CLOEXEC != 0})
	}
	return nil
}

func captureFD(f *proc.Frozen, pidfd, n int) (d image.Description, err error) {
	info, err := proc.ReadFDInfo(f.PID, n)
	if err != nil {
		return d, err
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", f.PID, n)
	link, err := os.Readlink(path)
	if err != nil {
		return d, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return d, err
	}
	d.Flags = info.Flags &^ unix.O_CLOEXEC
	switch {
	case n <= 2:
		d.Kind, d.External = image.FDExternal, []string{"stdin", "stdout", "stderr"}[n]
	case info.Eventfd:
		d.Kind, d.Event = image.FDEventfd, &image.EventState{Count: info.EventCount}
	case filepath.Base(link) == "[eventpoll]" || link == "anon_inode:[eventpoll]":
		d.Kind = image.FDEpoll
		for _, e := range info.Epoll {
			d.Epoll = append(d.Epoll, image.EpollItem{FD: e.FD, Events: e.Events, Data: e.Data})
		}
	case st.Mode&unix.S_IFMT == unix.S_IFIFO:
		d.Kind, d.Pipe = image.FDPipe, &image.PipeEnd{ID: st.Ino, Write: info.Flags&unix.O_ACCMODE == unix.O_WRONLY}
		if !d.Pipe.Write {
			fd, err := unix.PidfdGetfd(pidfd, n, 0)
			if err != nil {
				return d, err
			}
			defer unix.Close(fd)
			buf := make([]byte, 65536)
			k, err := unix.Read(fd, buf) // it is killed anyway
			if err != nil {
				return d, err
			}
			d.Pipe.Data = buf[:k]
		}
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		d.Kind, d.Path = image.FDFile, link
		d.File = &image.FileState{MappedFile: image.MappedFile{Path: link, Size: st.Size}, Offset: info.Pos, Mode: st.Mode}
	default:
		return d, fmt.Errorf("%s: not known here", link)
	}
	return d, nil
}

func captureMaps(f *proc.Frozen, w *image.Writer, p *image.Process) error {
	maps, err := f.SMaps()
	if err != nil {
		return err
	}
	pw, err := w.Process(p.PID)
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", f.PID))
	if err != nil {
		return err
	}
	defer mem.Close()
	pm, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", f.PID))
	if err != nil {
		return err
	}
	defer pm.Close()
	for i := range maps {
		m := &maps[i]
		v := image.Mapping{Start: m.Start, End: m.End, Prot: m.Prot, Shared: m.Shared, Offset: m.Offset, Grows: m.HasFlag("gd")}
		switch m.Path {
		case "[vdso]":
			v.Kind = image.MapVDSO
		case "[vvar]", "[vvar_vclock]":
			v.Kind = image.MapVVAR
		case "[vsyscall]":
			v.Kind = image.MapVsyscall
		case "", "[heap]", "[stack]":
			v.Kind = image.MapAnon
		default:
			id, err := image.IdentifyFile(m.Path)
			if err != nil {
				return err
			}
			v.Kind, v.File = image.MapPrivate, &id
		}
		p.Maps = append(p.Maps, v)
		if v.Kind == image.MapAnon || v.Kind == image.MapPrivate {
			if err := capturePages(mem, pm, pw, &v); err != nil {
				return err
			}
		}
	}
	return pw.Close()
}

// capturePages stores the pages that are the process' own, by pagemap bits 63
// (present) and 61 (of a file).
func capturePages(mem, pm *os.File, pw *image.PageWriter, v *image.Mapping) error {
	n := int((v.End - v.Start) / image.PageSize)
	if n > 1<<18 {
		return nil // a reservation
	}
	bits := make([]byte, 8*n)
	if _, err := pm.ReadAt(bits, int64(v.Start/image.PageSize*8)); err != nil {
		return err
	}
	for i := range n {
		e := binary.LittleEndian.Uint64(bits[8*i:])
		if e>>63 == 0 || e>>61&1 == 1 {
			continue
		}
		page, addr := make([]byte, image.PageSize), v.Start+uint64(i)*image.PageSize
		if _, err := mem.ReadAt(page, int64(addr)); err != nil {
			return err
		}
		if err := pw.Write(addr, page); err != nil {
			return err
		}
	}
	return nil
}
