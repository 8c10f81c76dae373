package scheduler

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/lampause/lampause/job"
)

// room is what one node offers a job.
type room struct {
	node  job.NodeID
	slots int
	used  int // slots taken by other jobs
}

// Place decides which ranks go where: one pod per node that gets ranks, in the
// order of the host list or of the nodes' names. With map-by block a node is
// filled before the next one, with map-by node the ranks are dealt round.
// Spec.PPN, when given, replaces the number of slots of every node, and slots
// in a host list that of that node; otherwise slots taken by other jobs do not
// count as free.
//
// Expected refusals: NoSuch for a host that is not alive here, NoRoom with the
// way out.
func Place(s *State, spec *job.Spec) ([]job.PodPlacement, *Refusal) {
	rooms, r := s.rooms(spec)
	if r != nil {
		return nil, r
	}
	free, total := 0, 0
	for _, m := range rooms {
		free += max(m.slots-m.used, 0)
		total += m.slots
	}
	if free < spec.Ranks {
		return nil, noRoom(spec, rooms, free, total)
	}
	given := make([][]job.Rank, len(rooms))
	next := 0
	for r := range spec.Ranks {
		if spec.MapBy == job.MapByNode {
			for tries := 0; len(given[next]) >= rooms[next].slots-rooms[next].used && tries < len(rooms); tries++ {
				next = (next + 1) % len(rooms)
			}
			given[next] = append(given[next], job.Rank(r))
			next = (next + 1) % len(rooms)
			continue
		}
		for len(given[next]) >= rooms[next].slots-rooms[next].used {
			next++
		}
		given[next] = append(given[next], job.Rank(r))
	}
	var pods []job.PodPlacement
	for i, ranks := range given {
		if len(ranks) > 0 {
			pods = append(pods, job.PodPlacement{Pod: job.PodIndex(len(pods)), Node: rooms[i].node, Ranks: ranks})
		}
	}
	return pods, nil
}

// rooms lists what is offered, in order.
func (s *State) rooms(spec *job.Spec) ([]room, *Refusal) {
	var out []room
	if len(spec.Hosts) == 0 || !slices.ContainsFunc(spec.Hosts, func(h job.HostSlots) bool { return !h.Spare }) {
		for _, n := range s.AliveNodes() {
			spare := slices.ContainsFunc(spec.Hosts, func(h job.HostSlots) bool { return h.Node == n.ID })
			if n.Role == Compute && !spare {
				out = append(out, s.room(n, 0, spec.PPN))
			}
		}
		if len(out) == 0 {
			return nil, refuse(NoRoom, job.ExitNoNodes, "no compute node is alive: `lam nodes` shows them, `lam boot` starts some")
		}
		return out, nil
	}
	for _, h := range spec.Hosts {
		n, ok := s.Nodes[h.Node]
		if !ok || n.State != Alive {
			return nil, refuse(NoSuch, job.ExitNoNodes, "host %q is not a living node of this cluster (alive: %s)", h.Node, s.aliveText())
		}
		if h.Spare {
			continue
		}
		m := s.room(n, h.Slots, spec.PPN)
		if i := slices.IndexFunc(out, func(o room) bool { return o.node == m.node }); i >= 0 {
			if spec.PPN == 0 {
				out[i].slots += m.slots
			}
			continue
		}
		out = append(out, m)
	}
	return out, nil
}

func (s *State) room(n Node, slots, ppn int) room {
	switch {
	case ppn > 0:
		return room{node: n.ID, slots: ppn}
	case slots > 0:
		return room{node: n.ID, slots: slots}
	}
	return room{node: n.ID, slots: n.Slots, used: min(s.ranksOn(n.ID), n.Slots)}
}

func (s *State) aliveText() string {
	var names []string
	for _, n := range s.AliveNodes() {
		names = append(names, string(n.ID))
	}
	return strings.Join(names, " ")
}

// noRoom says what is missing and what can be done about it.
func noRoom(spec *job.Spec, rooms []room, free, total int) *Refusal {
	have := fmt.Sprintf("%d slots", total)
	if free < total {
		have = fmt.Sprintf("%d free slots of %d", free, total)
	}
	var way []string
	if free > 0 {
		way = append(way, fmt.Sprintf("ask for %d or fewer", free))
	}
	if free < total && total >= spec.Ranks {
		way = append(way, "wait for other jobs to end")
	}
	ppn := (spec.Ranks + len(rooms) - 1) / len(rooms)
	way = append(way, "add nodes", fmt.Sprintf("or use -ppn %d to put more ranks on a node than it has slots", ppn))
	return refuse(NoRoom, job.ExitNoNodes, "%d ranks but %s on %d nodes: %s", spec.Ranks, have, len(rooms), strings.Join(way, ", "))
}

// newPod gives a pod its virtual identity, which stays with it wherever it
// goes: IP 10.(128+job%64).(pod/250).(pod%250+1), hostname lam-jJOB-pPOD.
func newPod(id job.ID, i job.PodIndex, p job.PodPlacement, boot job.Boot) Pod {
	return Pod{
		Index: i, Node: p.Node, Boot: boot, Ranks: p.Ranks, Built: 1,
		IP:       netip.AddrFrom4([4]byte{10, byte(128 + id%64), byte(i / 250), byte(i%250 + 1)}),
		MAC:      podMAC(id, i, 1),
		Hostname: fmt.Sprintf("lam-j%v-p%d", id, i),
	}
}

// podMAC returns the hardware address of a pod: locally administered, with
// the low byte of the job, the pod, and the low byte of the incarnation in
// which the pod was built, so that a stale pod answers to another one.
func podMAC(id job.ID, p job.PodIndex, inc job.Incarnation) string {
	return fmt.Sprintf("02:4c:%02x:%02x:%02x:%02x", byte(id), byte(p>>8), byte(p), byte(inc))
}
