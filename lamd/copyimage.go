package lamd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"time"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// copyRequest asks a node to hold a pod's image, fetched from one of From.
type copyRequest struct {
	Job     job.ID         `json:"job"`
	Epoch   job.Epoch      `json:"epoch"`
	Pod     job.PodIndex   `json:"pod"`
	From    []job.NodeID   `json:"from"`
	Written podapi.Written `json:"written"`
	Urgent  bool           `json:"urgent"`
	Digests bool           `json:"digests,omitempty"` // the image is compared with its SHA-256s, not only its XXH3s
	UID     uint32         `json:"uid"`
	GID     uint32         `json:"gid"`
}

// copyReply answers a copyRequest that was carried out, with success or not.
type copyReply struct {
	// Damaged are the nodes of From that do not have the image intact; each
	// looked at its own copy again before it was listed.
	Damaged []job.NodeID `json:"damaged,omitempty"`
	// Failed says why there is no intact image here, "" when there is one.
	Failed string `json:"failed,omitempty"`
}

// hopeless reports whether the copy failed because no node has it.
func (c *copyReply) hopeless(r copyRequest) bool {
	return c.Failed != "" && !slices.ContainsFunc(r.From, func(n job.NodeID) bool { return !slices.Contains(c.Damaged, n) })
}

// checkRequest asks a node to read its copy of an image again, whole.
type checkRequest struct {
	Job     job.ID         `json:"job"`
	Epoch   job.Epoch      `json:"epoch"`
	Pod     job.PodIndex   `json:"pod"`
	Written podapi.Written `json:"written"`
	Digests bool           `json:"digests,omitempty"`
}

// check is what this node is asked to look at before it uses the image.
func (r copyRequest) check() checkRequest {
	return checkRequest{Job: r.Job, Epoch: r.Epoch, Pod: r.Pod, Written: r.Written, Digests: r.Digests}
}

// checkReply answers a checkRequest; Damaged is "" for an intact image.
type checkReply struct {
	Damaged string `json:"damaged,omitempty"`
}

// checkMax bounds how long another node may take to read an image again. It
// comes on top of a copy that failed.
const checkMax = 20 * time.Second

// copy makes this node hold a pod's image, fetched from the first holder that
// can give it whole. One that is here already is checked when a recovery wants
// to use it, and brought anew when it is damaged.
//
// Expected errors: those of this node's store. That no holder could give the
// image is told by the reply.
func (n *nodeAPI) copy(ctx context.Context, r copyRequest) (copyReply, error) {
	var out copyReply
	unlock, err := n.copying.lock(ctx, imageKey{r.Job, r.Epoch, r.Pod})
	if err != nil {
		return out, fmt.Errorf("copy image: %w", err)
	}
	defer unlock()
	dir, err := n.store.CreateJob(r.Job, -1, -1)
	if err != nil {
		return out, err
	}
	defer func() { _ = dir.Close() }()
	recv, err := n.receive(ctx, dir, r, &out)
	if err != nil || recv == nil {
		return out, err
	}
	var errs []error
	for _, from := range r.From {
		if from == n.self {
			continue
		}
		if err := n.fetch(ctx, recv, from, r); err != nil {
			errs = append(errs, fmt.Errorf("from %s: %w", from, err))
			if n.askDamaged(ctx, from, r, err) {
				out.Damaged = append(out.Damaged, from)
			}
			continue
		}
		if _, err := recv.Commit(); err != nil {
			return out, fmt.Errorf("copy image: %w", errors.Join(err, recv.Abort()))
		}
		if !r.Digests {
			return out, nil
		}
		return out, checkImage(ctx, dir, r.check())
	}
	errs = append(errs, recv.Abort())
	out.Failed = fmt.Sprintf("copy image of job %d epoch %d pod %d: no holder could give it: %v", r.Job, r.Epoch, r.Pod, errors.Join(errs...))
	return out, nil
}

// receive begins to take the image; nil when it is here already, and intact as
// far as anybody wants to know.
func (n *nodeAPI) receive(ctx context.Context, dir *image.JobDir, r copyRequest, out *copyReply) (*image.Receiver, error) {
	recv, err := dir.Receive(r.Epoch, r.Pod, r.Written)
	switch {
	case err == nil && slices.Contains(r.From, n.self):
		out.Damaged = append(out.Damaged, n.self) // it should be here, and is not
		return recv, nil
	case errors.Is(err, image.ErrExists) && !r.Urgent:
		return nil, nil //nolint:nilnil // nothing to receive
	case errors.Is(err, image.ErrExists), errors.Is(err, image.ErrCorrupt):
		why := checkImage(ctx, dir, r.check())
		if ctx.Err() != nil {
			return nil, fmt.Errorf("check image: %w", context.Cause(ctx))
		}
		if why == nil {
			return nil, nil //nolint:nilnil // nothing to receive
		}
		if _, lerr := dir.Open(r.Epoch, r.Pod); errors.Is(err, image.ErrCorrupt) && errors.Is(lerr, fs.ErrNotExist) {
			return nil, fmt.Errorf("copy image: %w", err) // the list that was asked for is at fault
		}
		n.log.Error().Err(why).Uint64("job", uint64(r.Job)).Uint64("epoch", uint64(r.Epoch)).Int("pod", int(r.Pod)).Msg("stored image is damaged; set aside")
		if slices.Contains(r.From, n.self) {
			out.Damaged = append(out.Damaged, n.self)
		}
		if err := dir.SetAside(r.Epoch, r.Pod); err != nil {
			return nil, err
		}
		recv, err = dir.Receive(r.Epoch, r.Pod, r.Written)
	}
	if err != nil {
		return nil, fmt.Errorf("copy image: %w", err)
	}
	return recv, nil
}

// check reads this node's copy of an image whole.
func (n *nodeAPI) check(ctx context.Context, r checkRequest) (checkReply, error) {
	dir, err := n.store.Job(r.Job)
	if errors.Is(err, fs.ErrNotExist) {
		return checkReply{Damaged: "there are no images of that job"}, nil
	}
	if err != nil {
		return checkReply{}, err
	}
	defer func() { _ = dir.Close() }()
	err = checkImage(ctx, dir, r)
	switch {
	case ctx.Err() != nil:
		return checkReply{}, fmt.Errorf("check image: %w", context.Cause(ctx))
	case err != nil:
		return checkReply{Damaged: err.Error()}, nil
	}
	return checkReply{}, nil
}

const verifyWorkers = 4

// checkImage reads a stored image whole, as a recovery will use it, and makes
// sure that it is the one that was announced.
func checkImage(ctx context.Context, dir *image.JobDir, r checkRequest) error {
	rd, err := dir.Open(r.Epoch, r.Pod)
	if err != nil {
		return fmt.Errorf("check image: %w", err)
	}
	defer func() { _ = rd.Close() }()
	if got := rd.Written().Digest; got != r.Written.Digest {
		return fmt.Errorf("check image: %w: digest %s, want %s", image.ErrCorrupt, got, r.Written.Digest)
	}
	if r.Digests {
		err = rd.VerifyDigests(ctx)
	} else {
		err = rd.Verify(ctx, verifyWorkers)
	}
	if err != nil {
		return fmt.Errorf("check image: %w", err)
	}
	return nil
}

// askDamaged asks a node from which an image did not come whole whether its
// copy is damaged. A node that does not answer may be dead, which is another
// matter and found out by others.
func (n *nodeAPI) askDamaged(ctx context.Context, node job.NodeID, r copyRequest, why error) bool {
	ctx, cancel := context.WithTimeout(ctx, checkMax)
	defer cancel()
	var out checkReply
	err := n.peers.call(ctx, node, http.MethodPost, "/v1/node/check", r.check(), &out)
	ev := n.log.Warn().Err(why).Str("from", string(node)).Uint64("job", uint64(r.Job)).Uint64("epoch", uint64(r.Epoch)).Int("pod", int(r.Pod))
	if err != nil {
		ev.AnErr("check", err).Msg("image not received; its holder does not answer")
		return false
	}
	ev.Str("damaged", out.Damaged).Msg("image not received")
	return out.Damaged != ""
}

// fetch takes the missing files from one holder.
func (n *nodeAPI) fetch(ctx context.Context, recv *image.Receiver, from job.NodeID, r copyRequest) error {
	// The manifest comes first; what this node has then is not missing any more.
	for left := recv.Missing(); len(left) > 0; left = recv.Missing() {
		name := left[0]
		path := fmt.Sprintf("/v1/images/%d/%d/%d/%s", r.Job, r.Epoch, r.Pod, name)
		body, err := n.peers.open(ctx, from, path)
		if err != nil {
			return err
		}
		err = recv.File(ctx, name, body)
		if cerr := body.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}
