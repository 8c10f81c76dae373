package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// m makes a mark: state, write_seq, send_len, rcv_nxt.
func m(local, remote string, state uint8, seqs ...int) podapi.Mark {
	k := podapi.Mark{Flow: podapi.Flow{Local: local, Remote: remote}, State: state}
	for i, v := range seqs {
		switch i {
		case 0:
			k.WriteSeq = uint32(v)
		case 1:
			k.SendLen = v
		case 2:
			k.RcvNxt = uint32(v)
		}
	}
	return k
}

type pods = map[job.PodIndex][]podapi.Mark

func TestPair(t *testing.T) {
	const a, b, lo, lo2 = "10.0.0.1:1", "10.0.0.2:2", "127.0.0.1:1", "127.0.0.1:2"
	const est, wait = stateEstablished, stateCloseWait
	tests := []struct {
		name string
		in   pods
		want string // part of the refusal; empty: fits
	}{
		{"nothing", pods{0: nil, 1: nil}, ""},
		{"freeze", pods{0: {m(a, b, est)}, 1: {m(b, a, est)}}, ""},
		{"fits", pods{0: {m(a, b, est, 100, 10, 50)}, 1: {m(b, a, est, 50, 0, 95)}}, ""},
		{"fits all received", pods{0: {m(a, b, est, 100, 10, 50)}, 1: {m(b, a, est, 50, 0, 100)}}, ""},
		{"fits none received", pods{0: {m(a, b, est, 100, 10, 50)}, 1: {m(b, a, est, 50, 0, 90)}}, ""},
		{"fits around zero", pods{0: {m(a, b, est, 5, 10, 50)}, 1: {m(b, a, est, 50, 0, -3)}}, ""},
		{"hole", pods{0: {m(a, b, est, 100, 10, 50)}, 1: {m(b, a, est, 50, 0, 89)}}, "do not fit"},
		{"from the future", pods{0: {m(a, b, est, 100, 10, 50)}, 1: {m(b, a, est, 50, 0, 101)}}, "do not fit"},
		{"negative length", pods{0: {m(a, b, est, 100, -1, 50)}, 1: {m(b, a, est, 50, 0, 100)}}, "do not fit"},
		{"same pod", pods{3: {m(a, b, est), m(b, a, est)}}, ""},
		{"itself", pods{0: {m(a, a, est, 7, 2, 6)}}, ""},
		{"loopback", pods{0: {m(lo, lo2, est), m(lo2, lo, est)}, 1: {m(lo, lo2, est), m(lo2, lo, est)}}, ""},
		{"loopback across", pods{0: {m(lo, lo2, est)}, 1: {m(lo2, lo, est)}}, "no process of the job"},
		{"unpaired", pods{0: {m(a, b, est)}, 1: nil}, "no process of the job"},
		{"unpaired, own stream ended", pods{0: {m(a, b, stateFinWait2)}, 1: nil}, "no process of the job"},
		{"peer closed", pods{0: {m(a, b, wait)}, 1: nil}, ""},
		{"peer closed, then we", pods{0: {m(a, b, stateLastAck)}}, ""},
		{"connecting", pods{0: {m(a, b, stateSynSent)}}, "set up"},
		{"connecting to one", pods{0: {m(a, b, stateSynSent)}, 1: {m(b, a, est)}}, "set up"},
		{"twice", pods{0: {m(a, b, est)}, 1: {m(b, a, est)}, 2: {m(b, a, est)}}, "two sockets"},
		{"half closed", pods{0: {m(a, b, stateFinWait2, 9, 0, 4)}, 1: {m(b, a, wait, 6, 2, 9)}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Pair(tt.in)
			if tt.want == "" {
				must(t, err)
				return
			}
			var r *Refusal
			if !errors.As(err, &r) || !r.Retry() || !strings.Contains(err.Error(), tt.want) || got != nil {
				t.Fatalf("got %v, %v; want a refusal with %q", got, err, tt.want)
			}
		})
	}
}

func TestPairGivesOtherEnds(t *testing.T) {
	const a, b, c = "10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"
	ab, ba := m(a, b, stateEstablished, 1, 0, 2), m(b, a, stateEstablished, 2, 0, 1)
	ac, ca := m(a, c, stateEstablished, 3, 0, 4), m(c, a, stateEstablished, 4, 0, 3)
	dead := m(a, "10.0.0.9:9", stateCloseWait, 1, 0, 1)
	got, err := Pair(pods{0: {ab, dead, ac}, 1: {ba}, 2: {ca}})
	must(t, err)
	if d := cmp.Diff(pods{0: {ba, ca}, 1: {ab}, 2: {ac}}, got); d != "" {
		t.Fatal(d)
	}
}

func TestTrim(t *testing.T) {
	const a, b = "10.0.0.1:1", "10.0.0.2:2"
	rec := func(eof bool) *Record {
		return &Record{Ends: []End{
			{TCP: &image.TCPEnd{Local: a, Remote: b, SendSeq: 0xfffffffe, Send: []byte("01234567"), EOF: eof}},
			{TCP: &image.TCPEnd{Local: a, State: stateListen}},
		}}
	}
	for _, tt := range []struct {
		received int // sequence number
		want     string
		ok       bool
	}{{-2, "01234567", true}, {-1, "1234567", true}, {0, "234567", true}, {6, "", true}, {7, "", false}, {-3, "", false}} {
		r := rec(false)
		peers := []podapi.Mark{m(b, a, stateEstablished, 0, 0, tt.received)}
		err := r.Trim(peers)
		if (err == nil) != tt.ok {
			t.Fatalf("received %d: %v", tt.received, err)
		}
		if err != nil {
			continue
		}
		must(t, r.Trim(peers))
		if e := r.Ends[0].TCP; string(e.Send) != tt.want || e.SendSeq != uint32(tt.received) || e.PeerGone {
			t.Errorf("received %d: %q at %d", tt.received, e.Send, e.SendSeq)
		}
		if r.Bytes() != int64(len(tt.want)) {
			t.Errorf("%d bytes", r.Bytes())
		}
	}
	if err := rec(false).Trim(nil); err == nil {
		t.Error("an open end without a peer was taken")
	}
	r := rec(true)
	must(t, r.Trim(nil))
	if e := r.Ends[0].TCP; !e.PeerGone || len(e.Send) != 0 || e.SendSeq != 6 {
		t.Errorf("end of a gone peer: %+v", e)
	}
}

func TestDescriptions(t *testing.T) {
	l := End{Flags: 2, TCP: &image.TCPEnd{State: stateListen, Cookie: 5}}
	c := End{Flags: 2048, TCP: &image.TCPEnd{State: stateEstablished, Cookie: 6}}
	list := []image.Description{{Kind: image.FDPipe}, l.Description(), c.Description()}
	if list[1].Kind != image.FDListener || list[2].Kind != image.FDTCP {
		t.Fatalf("kinds %v %v", list[1].Kind, list[2].Kind)
	}
	r := FromDescriptions(list)
	if d := cmp.Diff([]End{l, c}, r.Ends); d != "" {
		t.Fatal(d)
	}
	if r.Find(6) != c.TCP || r.Find(7) != nil {
		t.Fatal("Find")
	}
}

func TestShiftIsOfDirectionAndGeneration(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")
	seen := map[uint32]bool{shift(1, a, b): true, shift(1, b, a): true, shift(2, a, b): true, shift(2, b, a): true}
	if len(seen) != 4 || !seen[shift(2, a, b)] {
		t.Fatal(seen)
	}
}

// FuzzPair checks, for two pods with one connection in any state: what fits
// leads to records in which every byte of both streams is there exactly once.
func FuzzPair(f *testing.F) {
	f.Add([]byte("0123456789"), []byte("abc"), uint32(5), uint32(0xfffffffc), uint16(4), uint16(3), uint16(2), uint16(0), byte(1), byte(1))
	f.Add([]byte(""), []byte(""), uint32(0), uint32(0), uint16(0), uint16(0), uint16(0), uint16(0), byte(4), byte(8))
	f.Fuzz(func(t *testing.T, ab, ba []byte, seqAB, seqBA uint32, acked, got, acked2, got2 uint16, sa, sb byte) {
		const a, b = "10.0.0.1:1", "[::ffff:10.0.0.2]:2"
		// A's stream: bytes below acked are gone from its queue, bytes below got
		// have reached B.
		end := func(l, r string, out []byte, seq uint32, acked uint16, in []byte, seqIn uint32, gotIn uint16, state byte) (podapi.Mark, *Record) {
			acked, gotIn = min(acked, uint16(len(out))), min(gotIn, uint16(len(in)))
			e := &image.TCPEnd{Local: l, Remote: r, SendSeq: seq + uint32(acked), Send: out[acked:], RecvSeq: seqIn + uint32(gotIn), Recv: in[:gotIn]}
			mk := m(l, r, state)
			mk.WriteSeq, mk.SendLen, mk.RcvNxt, mk.RecvLen = seq+uint32(len(out)), len(out)-int(acked), e.RecvSeq, int(gotIn)
			return mk, &Record{Ends: []End{{TCP: e}}}
		}
		if len(ab) > 60000 || len(ba) > 60000 {
			return
		}
		ma, ra := end(a, b, ab, seqAB, acked, ba, seqBA, got2, sa)
		mb, rb := end(b, a, ba, seqBA, acked2, ab, seqAB, got, sb)
		peers, err := Pair(pods{0: {ma}, 1: {mb}})
		hole := min(int(acked), len(ab)) > min(int(got), len(ab)) || min(int(acked2), len(ba)) > min(int(got2), len(ba))
		connecting := sa == stateSynSent || sa == stateSynRecv || sb == stateSynSent || sb == stateSynRecv
		if (err != nil) != (hole || connecting) {
			t.Fatalf("hole %v connecting %v: %v", hole, connecting, err)
		}
		if err != nil {
			return
		}
		must(t, ra.Trim(peers[0]))
		must(t, rb.Trim(peers[1]))
		ea, eb := ra.Ends[0].TCP, rb.Ends[0].TCP
		if !bytes.Equal(append(bytes.Clone(eb.Recv), ea.Send...), ab) || !bytes.Equal(append(bytes.Clone(ea.Recv), eb.Send...), ba) {
			t.Fatal("bytes are missing or there twice")
		}
		if ea.SendSeq != eb.RecvSeq || eb.SendSeq != ea.RecvSeq {
			t.Fatal("sequence numbers do not meet")
		}
	})
}

// FuzzPairMarks gives Pair anything: it must answer.
func FuzzPairMarks(f *testing.F) {
	f.Add([]byte("0123456789012345678901234567890123456789"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		addrs := []string{"10.0.0.1:1", "10.0.0.2:2", "127.0.0.1:1", "", "nonsense", "[::1]:5"}
		in := pods{}
		for ; len(raw) >= 20; raw = raw[20:] {
			mk := m(addrs[int(raw[0])%len(addrs)], addrs[int(raw[1])%len(addrs)], raw[2]%12)
			mk.WriteSeq, mk.RcvNxt = binary.LittleEndian.Uint32(raw[4:]), binary.LittleEndian.Uint32(raw[8:])
			mk.SendLen, mk.RecvLen = int(int32(binary.LittleEndian.Uint32(raw[12:]))), int(int32(binary.LittleEndian.Uint32(raw[16:])))
			pod := job.PodIndex(raw[3] % 3)
			in[pod] = append(in[pod], mk)
		}
		got, err := Pair(in)
		if (got == nil) == (err == nil) {
			t.Fatalf("%v, %v", got, err)
		}
	})
}
