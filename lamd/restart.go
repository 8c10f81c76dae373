package lamd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/scheduler"
)

// heldEpoch is what a node's store has of a committed epoch.
type heldEpoch struct {
	Commit image.Commit            `json:"commit"`
	Pods   map[job.PodIndex]string `json:"pods"` // digest of each image held here
	Last   job.Epoch               `json:"last"` // newest number of the job that was ever used here
}

// held lists the committed epochs of a job in this node's store.
func (n *nodeAPI) held(w http.ResponseWriter, r *http.Request) {
	id, err := job.ParseID(r.PathValue("job"))
	if err != nil {
		writeError(w, badRequest(err.Error()))
		return
	}
	out, err := heldEpochs(n.store, id)
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, out)
}

func heldEpochs(store *image.Store, id job.ID) ([]heldEpoch, error) {
	out := []heldEpoch{}
	dir, err := store.Job(id)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	epochs, err := dir.Epochs()
	if err != nil {
		return nil, err
	}
	next, err := dir.Next()
	if err != nil {
		return nil, err
	}
	for _, e := range epochs {
		c, err := dir.Committed(e.Epoch)
		if err != nil {
			continue // not committed, or its record is damaged: not for a restart
		}
		h := heldEpoch{Commit: c, Pods: map[job.PodIndex]string{}, Last: next - 1}
		for _, p := range e.Pods {
			rd, err := dir.Open(e.Epoch, p)
			if err != nil {
				continue // damaged: another holder may have it whole
			}
			h.Pods[p] = rd.Written().Digest
			_ = rd.Close() // read only
		}
		out = append(out, h)
	}
	return out, nil
}

// restart brings an ended job back from its images. A cluster that has never
// heard of the job asks all nodes what their stores hold of it.
func (a *jobsAPI) restart(r *http.Request) (any, error) {
	id, err := job.ParseID(r.PathValue("job"))
	if err != nil {
		return nil, badRequest(err.Error())
	}
	epoch, err := strconv.ParseUint("0"+r.URL.Query().Get("epoch"), 10, 64)
	if err != nil {
		return nil, badRequest("epoch: not a number")
	}
	st := a.state()
	cmd := scheduler.Restart{Job: scheduler.Job{ID: id}, Epoch: job.Epoch(epoch)}
	if j, ok := st.Jobs[id]; ok {
		if _, err := a.own(r); err != nil {
			return nil, err
		}
		cmd.Job.Spec.UID = j.Spec.UID
		if j.State.Final() && j.Whole() == nil {
			// Nodes that were lost may be back with their disks.
			if found, err := a.collect(r.Context(), st, id, job.Epoch(epoch)); err == nil {
				cmd.Job.Epochs = found.Epochs
			}
		}
	} else {
		j, err := a.collect(r.Context(), st, id, job.Epoch(epoch))
		if err != nil {
			return nil, err
		}
		if c, ok := callerOf(r.Context()); !ok || !c.may(j.Spec.UID) {
			return nil, forbidden(fmt.Sprintf("job %d belongs to another user", id))
		}
		cmd.Job = j
	}
	if err := a.apply(r.Context(), scheduler.Command{Restart: &cmd}); err != nil {
		return nil, err
	}
	return control.Submitted{Job: id}, nil
}

// collect makes a job's record out of what the stores of all living nodes
// hold: the newest committed epoch (or the one asked for) of which every pod's
// image is somewhere.
func (a *jobsAPI) collect(ctx context.Context, st *scheduler.State, id job.ID, want job.Epoch) (scheduler.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, collectMax)
	defer cancel()
	alive := st.AliveNodes()
	answers := make([][]heldEpoch, len(alive))
	atMost(collectAtOnce, len(alive), func(i int) {
		err := a.peers.call(ctx, alive[i].ID, http.MethodGet, "/v1/node/images/"+id.String(), nil, &answers[i])
		if err != nil {
			answers[i] = nil
			a.log.Warn().Err(err).Str("node", string(alive[i].ID)).Msg("images of node not known")
		}
	})
	held := map[job.NodeID][]heldEpoch{}
	for i, n := range alive {
		if answers[i] != nil {
			held[n.ID] = answers[i]
		}
	}
	return assemble(held, id, want)
}

// Bounds of asking all nodes for what they hold: a node that does not answer
// costs this much once, however many there are.
const (
	collectMax    = statusTimeout
	collectAtOnce = 64
)

// atMost calls do(0) ... do(n-1), so many of them at a time, and waits for all.
func atMost(atOnce, n int, do func(int)) {
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error {
			do(i)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
}

// assemble is the pure part of collect.
//
// Expected errors: *control.Error with status 404, naming what is missing.
func assemble(held map[job.NodeID][]heldEpoch, id job.ID, want job.Epoch) (scheduler.Job, error) {
	var commits []image.Commit
	for _, hs := range held {
		for _, h := range hs {
			if want == 0 || h.Commit.Epoch == want {
				commits = append(commits, h.Commit)
			}
		}
	}
	// The newest first. Stores may hold one epoch in two makes, when a number
	// was given twice by clusters that knew nothing of each other.
	slices.SortFunc(commits, func(x, y image.Commit) int {
		return cmp.Or(cmp.Compare(y.Epoch, x.Epoch), cmp.Compare(y.RaftIndex, x.RaftIndex), cmp.Compare(x.SetDigest, y.SetDigest))
	})
	why := fmt.Sprintf("no committed image of job %d on any living node", id)
	for i, c := range commits {
		if i > 0 && c.Epoch == commits[i-1].Epoch && c.SetDigest == commits[i-1].SetDigest {
			continue
		}
		j, err := record(c, held)
		if err == nil {
			return j, nil
		}
		if i == 0 {
			why = err.Error()
		}
	}
	return scheduler.Job{}, notFound(why)
}

// record reads the job record of a commit and fills in who holds its images.
func record(c image.Commit, held map[job.NodeID][]heldEpoch) (scheduler.Job, error) {
	var j scheduler.Job
	if err := json.Unmarshal(c.Record, &j); err != nil {
		return j, fmt.Errorf("job %d epoch %d: record: %w", c.Job, c.Epoch, err)
	}
	e := j.Find(c.Epoch)
	if e == nil || j.ID != c.Job {
		return j, fmt.Errorf("job %d epoch %d: record is of another job or epoch", c.Job, c.Epoch)
	}
	epoch, err := heldImages(*e, c, held)
	if err != nil {
		return j, err
	}
	epochs := []scheduler.Epoch{epoch}
	// The epoch before is a second way back, should images turn out damaged.
	for i := len(j.Epochs) - 1; i >= 0 && len(epochs) == 1; i-- {
		older := j.Epochs[i]
		if older.Epoch >= c.Epoch || len(older.Images) != len(epoch.Images) {
			continue
		}
		if oc, ok := commitOf(older, held); ok {
			if whole, err := heldImages(older, oc, held); err == nil {
				epochs = []scheduler.Epoch{whole, epoch}
			}
		}
	}
	j.Epochs = epochs
	// Numbers that were given after that commit are not given again.
	for _, hs := range held {
		for _, h := range hs {
			j.LastEpoch = max(j.LastEpoch, h.Last)
		}
	}
	return j, nil
}

// heldImages returns e, which c committed, with the nodes that hold its images.
func heldImages(e scheduler.Epoch, c image.Commit, held map[job.NodeID][]heldEpoch) (scheduler.Epoch, error) {
	e.Images = slices.Clone(e.Images)
	for i := range e.Images {
		im := &e.Images[i]
		im.Holders = holders(c, im.Pod, held)
		if len(im.Holders) == 0 {
			return e, fmt.Errorf("job %d epoch %d: no intact image for ranks %v", c.Job, c.Epoch, im.Written.Ranks)
		}
	}
	return e, nil
}

// commitOf finds the COMMITTED record of an epoch that another one names.
func commitOf(e scheduler.Epoch, held map[job.NodeID][]heldEpoch) (image.Commit, bool) {
	for _, hs := range held {
		for _, h := range hs {
			if h.Commit.Epoch == e.Epoch && h.Commit.SetDigest == e.SetDigest {
				return h.Commit, true
			}
		}
	}
	return image.Commit{}, false
}

// holders lists the nodes that hold the very image of a pod that c committed.
func holders(c image.Commit, pod job.PodIndex, held map[job.NodeID][]heldEpoch) []job.NodeID {
	var out []job.NodeID
	for node, hs := range held {
		for _, h := range hs {
			if h.Commit.Epoch == c.Epoch && h.Commit.SetDigest == c.SetDigest && h.Pods[pod] == c.Pods[pod] && c.Pods[pod] != "" {
				out = append(out, node)
			}
		}
	}
	slices.Sort(out)
	return out
}
