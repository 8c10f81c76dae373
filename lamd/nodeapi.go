package lamd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/image"
	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/internal/podapi"
	"github.com/lampause/lampause/job"
)

// The node API: what daemons ask of each other, HTTP/1.1 with JSON on the
// node's own address. It is reached by members of the cluster only: a local
// cluster's network is its own.
//
//	POST /v1/node/start            podapi.PodSpec
//	POST /v1/node/kill             killRequest
//	POST /v1/node/copy             copyRequest -> copyReply
//	POST /v1/node/check            checkRequest -> checkReply
//	POST /v1/node/seal             sealRequest
//	POST /v1/node/drop             dropRequest
//	GET  /v1/images/JOB/EPOCH/POD/FILE
//	*    /v1/pods/JOB/PATH         PATH of the supervisor (podapi)
//	*    /v1/control/PATH          PATH of the control API, at the leader
//	POST /v1/tree                  treeRequest
//	POST /v1/report /v1/lease /v1/fence /v1/apply   at the leader

// killRequest asks for the end of a pod built in an incarnation up to UpTo.
type killRequest struct {
	Job   job.ID          `json:"job"`
	Pod   job.PodIndex    `json:"pod"`
	UpTo  job.Incarnation `json:"up_to"`
	Drain bool            `json:"drain"`
}

// sealRequest asks a holder for the COMMITTED record of an epoch.
type sealRequest struct {
	Commit image.Commit `json:"commit"`
}

// dropRequest lets a node delete an epoch's files; Epoch 0 means all.
type dropRequest struct {
	Job   job.ID    `json:"job"`
	Epoch job.Epoch `json:"epoch"`
}

// nodeAPI serves the node API. Its fields are set once, before it serves.
type nodeAPI struct {
	self    job.NodeID
	boot    job.Boot
	pods    *pods
	store   *image.Store
	stateOf func(job.ID) string // image directory of a job
	tmpOf   func(job.ID) string // private $TMPDIR of a job's pod
	peers   *peers
	archive *archive
	fan     *fanout
	log     zerolog.Logger
	copying keyLock[imageKey] // a repeated copy waits for the first one

	dropping sync.Mutex // held while images are deleted
}

// imageKey names a pod's image.
type imageKey struct {
	job   job.ID
	epoch job.Epoch
	pod   job.PodIndex
}

func (n *nodeAPI) routes(mux *http.ServeMux) {
	handle(mux, "POST /v1/node/start", n.start)
	handle(mux, "POST /v1/node/kill", n.kill)
	answer(mux, "POST /v1/node/copy", n.copy)
	answer(mux, "POST /v1/node/check", n.check)
	handle(mux, "POST /v1/node/seal", n.seal)
	handle(mux, "POST /v1/node/drop", n.drop)
	mux.HandleFunc("GET /v1/images/{job}/{epoch}/{pod}/{file}", n.serveImage)
	mux.HandleFunc("GET /v1/node/images/{job}", n.held)
	mux.HandleFunc("/v1/pods/{job}/", n.proxyPod)
	mux.HandleFunc("POST /v1/tree", n.fan.serve)
}

// handle registers a JSON request with an empty answer.
func handle[T any](mux *http.ServeMux, pattern string, do func(context.Context, T) error) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in T
		if err := readJSON(r, &in); err != nil {
			writeError(w, err)
			return
		}
		if err := do(r.Context(), in); err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, struct{}{})
	})
}

// start builds a pod here. A program that cannot be started is a refusal with
// the exit code that the job should end with.
func (n *nodeAPI) start(ctx context.Context, spec podapi.PodSpec) error {
	if spec.Boot != 0 && spec.Boot != n.boot {
		return tooLate("this is boot %d of %s: a pod placed on boot %d is not started", n.boot, n.self, spec.Boot)
	}
	if err := n.pods.admit(spec); err != nil {
		return err
	}
	if err := n.archive.forget(spec.Job); err != nil {
		return err
	}
	spec.Node = n.self
	spec.ImageDir = n.stateOf(spec.Job)
	spec.TmpDir = n.tmpOf(spec.Job)
	spec.LinkReady = false
	spec.LeaseMS = leaseTTL.Milliseconds()
	return n.pods.start(context.WithoutCancel(ctx), spec)
}

// kill ends a pod and answers when nothing of it is left. With Drain its output
// is kept for readers that come later.
func (n *nodeAPI) kill(ctx context.Context, r killRequest) error {
	named := func(p *localPod) bool { return p.spec.Placement.Pod == r.Pod && p.spec.Incarnation <= r.UpTo }
	if p, ok := n.pods.get(r.Job); ok && named(p) && r.Drain {
		if err := n.archive.save(ctx, p); err != nil {
			n.log.Warn().Err(err).Uint64("job", uint64(r.Job)).Msg("output of an ended pod is lost for late readers")
		}
	}
	n.pods.endUpTo(r.Job, r.UpTo)
	return n.pods.kill(context.WithoutCancel(ctx), r.Job, named)
}

func (n *nodeAPI) seal(_ context.Context, r sealRequest) error {
	dir, err := n.store.Job(r.Commit.Job)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return dir.MarkCommitted(r.Commit)
}

// drop deletes an epoch of a job, or all of it. One at a time: a request of the
// leader and the sweeper may mean the same.
func (n *nodeAPI) drop(_ context.Context, r dropRequest) error {
	n.dropping.Lock()
	defer n.dropping.Unlock()
	dir, err := n.store.Job(r.Job)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if r.Epoch != 0 {
		return dir.Remove(r.Epoch)
	}
	return n.dropJob(dir, r.Job)
}

// dropJob deletes every epoch of a job, and its directory.
func (n *nodeAPI) dropJob(dir *image.JobDir, id job.ID) error {
	epochs, err := dir.Epochs()
	if err != nil {
		return err
	}
	for _, e := range epochs {
		if err := dir.Remove(e.Epoch); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(n.stateOf(id)); err != nil {
		return fmt.Errorf("drop images of job %d: %w", id, err)
	}
	return nil
}

// serveImage sends one image file.
func (n *nodeAPI) serveImage(w http.ResponseWriter, r *http.Request) {
	f, err := n.openImage(r)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = notFound(err.Error())
		}
		writeError(w, err)
		return
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(st.Size(), 10))
	_, _ = io.Copy(w, f) // a short answer is seen by its length at the receiver
}

func (n *nodeAPI) openImage(r *http.Request) (*os.File, error) {
	id, err := job.ParseID(r.PathValue("job"))
	if err != nil {
		return nil, badRequest(err.Error())
	}
	epoch, err1 := strconv.ParseUint(r.PathValue("epoch"), 10, 64)
	pod, err2 := strconv.ParseUint(r.PathValue("pod"), 10, 31)
	if err1 != nil || err2 != nil {
		return nil, badRequest("image path: " + r.URL.Path)
	}
	dir, err := n.store.Job(id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	return dir.OpenFile(job.Epoch(epoch), job.PodIndex(pod), r.PathValue("file"))
}

// proxyPod passes a request to the supervisor of a pod on this node.
func (n *nodeAPI) proxyPod(w http.ResponseWriter, r *http.Request) {
	id, err := job.ParseID(r.PathValue("job"))
	if err != nil {
		writeError(w, badRequest(err.Error()))
		return
	}
	p, ok := n.pods.get(id)
	prefix := "/v1/pods/" + id.String()
	output := r.URL.Path == prefix+podapi.PathOutput
	if !ok && output && n.archive.serve(w, r, id) {
		return
	}
	if !ok {
		writeError(w, notFound(fmt.Sprintf("node %s has no pod of job %d", n.self, id)))
		return
	}
	rp := &httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     p.client.Transport,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", "pod"
			pr.Out.URL.Path = strings.TrimPrefix(pr.In.URL.Path, prefix)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			// A pod that is being ended was archived before.
			if output && supervisorGone(err) && n.archive.serve(w, r, id) {
				return
			}
			writeError(w, podDown(id, err))
		},
	}
	rp.ServeHTTP(w, r)
}

// podDown classes a failed call to a supervisor: one whose socket refuses is
// gone for good, as if it had never been here. (410 is what a supervisor says
// of a stdin that nobody reads any more.)
func podDown(id job.ID, err error) error {
	if supervisorGone(err) {
		return &control.Error{Message: fmt.Sprintf("supervisor of job %d is gone", id), Exit: job.ExitNoNodes, Status: http.StatusNotFound}
	}
	return unavailable(fmt.Sprintf("supervisor of job %d: %v", id, err))
}

// serveTCP serves h on the node's address until ctx ends.
func serveTCP(ctx context.Context, addr string, h http.Handler) error {
	lc := net.ListenConfig{KeepAlive: 5 * time.Second}
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("node API: %w", err)
	}
	return serveHTTP(ctx, &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}, ln)
}

// postPhase sends a phase to a pod's supervisor. A refusal comes back as a
// reply with Error set, together with its HTTP status.
func (p *peers) postPhase(ctx context.Context, node job.NodeID, id job.ID, in podapi.PhaseRequest) (*podapi.PhaseReply, int, error) {
	url, err := p.url(node, "/v1/pods/"+id.String()+podapi.PathPhase)
	if err != nil {
		return nil, 0, err
	}
	reply, status, err := postPhaseTo(ctx, p.client, url, in)
	p.accuse(node, err)
	return reply, status, err
}

func postPhaseTo(ctx context.Context, c *http.Client, url string, in podapi.PhaseRequest) (*podapi.PhaseReply, int, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, 0, fmt.Errorf("encode phase: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(string(b)))
	if err != nil {
		return nil, 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var out podapi.PhaseReply
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&out); err != nil {
		return nil, resp.StatusCode, fmt.Errorf("phase %s: %s: %w", in.Op, resp.Status, err)
	}
	return &out, resp.StatusCode, nil
}
