package stream

import (
	"fmt"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
)

// Record is the state of all TCP sockets of a pod at an epoch. It is plain
// data: it may be kept beside the memory of live ranks, or be written to and
// read from an image.
type Record struct {
	Ends  []End
	Slots []Slot // which descriptors the sockets were; empty when read from an image

	local bool // of a tree: every byte is in it once already
}

// End is a socket of a Record. TCP.Cookie is its identity: equal to the
// SO_COOKIE of the live socket when there is one.
type End struct {
	Flags int // O_* of the open file description
	TCP   *image.TCPEnd
}

// Description returns e in the form of an image.
func (e End) Description() image.Description {
	kind := image.FDTCP
	if e.TCP.State == stateListen {
		kind = image.FDListener
	}
	return image.Description{Kind: kind, Flags: e.Flags, TCP: e.TCP}
}

// FromDescriptions returns the record of the TCP sockets among the open file
// descriptions of an image. It shares their TCPEnds.
func FromDescriptions(list []image.Description) *Record {
	r := &Record{}
	for i := range list {
		if d := &list[i]; d.TCP != nil {
			r.Ends = append(r.Ends, End{Flags: d.Flags, TCP: d.TCP})
		}
	}
	return r
}

// Find returns the end with that identity, or nil.
func (r *Record) Find(cookie uint64) *image.TCPEnd {
	for i := range r.Ends {
		if r.Ends[i].TCP.Cookie == cookie {
			return r.Ends[i].TCP
		}
	}
	return nil
}

// Bytes returns how many bytes of streams r holds.
func (r *Record) Bytes() int64 {
	var n int64
	for _, e := range r.Ends {
		n += int64(len(e.TCP.Recv)) + int64(len(e.TCP.Send))
	}
	return n
}

// Trim cuts from every send queue what the other end had received, and marks
// the ends whose other end no process holds. peers are the marks of the other
// ends (see Pair), in any order. Doing it again changes nothing.
//
// Expected errors: *Refusal when a mark does not fit; r is then not to be used.
func (r *Record) Trim(peers []podapi.Mark) error {
	if r.local {
		return nil
	}
	byFlow := make(map[podapi.Flow]podapi.Mark, len(peers))
	for _, p := range peers {
		byFlow[podapi.Flow{Local: p.Remote, Remote: p.Local}] = p
	}
	for _, e := range r.Ends {
		if e.TCP.Remote == "" {
			continue
		}
		p, ok := byFlow[podapi.Flow{Local: e.TCP.Local, Remote: e.TCP.Remote}]
		if why := trim(e.TCP, p, ok); why != "" {
			return &Refusal{Obstacles: []Obstacle{{
				FD: -1, Flow: podapi.Flow{Local: e.TCP.Local, Remote: e.TCP.Remote}, Reason: why, Retry: true,
			}}}
		}
	}
	return nil
}

// trim leaves the bytes [peer.RcvNxt, end) in t.Send, or none without a peer.
func trim(t *image.TCPEnd, peer podapi.Mark, paired bool) string {
	end := t.SendSeq + uint32(len(t.Send))
	if !paired {
		if !t.EOF {
			return "the other end is in no process of the job"
		}
		t.PeerGone, t.Send, t.SendSeq = true, nil, end
		return ""
	}
	missing := end - peer.RcvNxt
	if uint64(missing) > uint64(len(t.Send)) {
		return fmt.Sprintf("queues do not fit: %d bytes in the send queue to %d, the peer has received to %d",
			len(t.Send), end, peer.RcvNxt)
	}
	t.PeerGone = false
	t.Send = t.Send[len(t.Send)-int(missing):]
	t.SendSeq = peer.RcvNxt
	if len(t.Send) == 0 {
		t.Send = nil
	}
	return ""
}
