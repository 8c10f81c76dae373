package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// The holder's control protocol, HTTP/1.1 with JSON over cluster.sock:
//
//	GET  /v1/cluster            Cluster
//	POST /v1/nodes/NODE/fail    Cluster, when every process of the node is dead
//	POST /v1/nodes/NODE/revive  Cluster, when the node's daemon is starting
//	POST /v1/halt               no body; the holder ends after its answer
//
// Only the owner of the cluster may ask. Errors are control.Error bodies.
func (h *holder) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/cluster", func(w http.ResponseWriter, _ *http.Request) { h.answer(w, nil) })
	mux.HandleFunc("POST /v1/nodes/{node}/fail", func(w http.ResponseWriter, r *http.Request) {
		h.answer(w, h.fail(job.NodeID(r.PathValue("node"))))
	})
	mux.HandleFunc("POST /v1/nodes/{node}/revive", func(w http.ResponseWriter, r *http.Request) {
		h.answer(w, h.revive(context.WithoutCancel(r.Context()), job.NodeID(r.PathValue("node"))))
	})
	mux.HandleFunc("POST /v1/halt", func(w http.ResponseWriter, _ *http.Request) {
		h.halting.Do(func() { close(h.halt) })
		w.WriteHeader(http.StatusAccepted)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := authorised(r.Context()); err != nil {
			sendError(w, http.StatusForbidden, job.ExitPermission, err)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (h *holder) answer(w http.ResponseWriter, err error) {
	if err != nil {
		exit, status := job.ExitInternal, http.StatusInternalServerError
		var r *Refused
		if errors.As(err, &r) {
			exit, status = r.Exit, http.StatusConflict
		} else {
			h.log.Error().Err(err).Msg("control request failed")
		}
		sendError(w, status, exit, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(h.snapshot())
}

func sendError(w http.ResponseWriter, status, exit int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(control.Error{Message: err.Error(), Exit: exit})
}

// machineOf finds a node by name.
func (h *holder) machineOf(id job.NodeID) (*machine, error) {
	for _, m := range h.machines {
		if m.id == id {
			return m, nil
		}
	}
	return nil, refuse(job.ExitUsage, "no node %q; the nodes are %s to %s", id, h.machines[0].id, h.machines[len(h.machines)-1].id)
}

// fail takes a node's power away.
func (h *holder) fail(id job.NodeID) error {
	m, err := h.machineOf(id)
	if err != nil {
		return err
	}
	h.op.Lock()
	defer h.op.Unlock()
	if !m.alive() {
		return refuse(job.ExitUsage, "node %s is down already; `lam revive %s` boots it", id, id)
	}
	h.log.Info().Str("node", string(id)).Msg("power off")
	if err := m.powerOff(); err != nil {
		return fmt.Errorf("node %s: %w", id, err)
	}
	return h.saveCluster()
}

// revive boots a node that is down.
func (h *holder) revive(ctx context.Context, id job.NodeID) error {
	m, err := h.machineOf(id)
	if err != nil {
		return err
	}
	h.op.Lock()
	defer h.op.Unlock()
	if m.alive() {
		return refuse(job.ExitUsage, "node %s is up; `lam fail %s` takes its power away", id, id)
	}
	h.log.Info().Str("node", string(id)).Msg("power on")
	if err := m.powerOn(ctx); err != nil {
		return err
	}
	return h.saveCluster()
}

// peerKey is the context key of a connection's peer credentials.
type peerKey struct{}

// withPeer notes who is at the other end of a unix connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// authorised lets the owner in, whose uid is the holder's own in its user
// namespace. Everybody else's is another one there (user_namespaces(7)).
func authorised(ctx context.Context) error {
	cred, ok := ctx.Value(peerKey{}).(*unix.Ucred)
	if !ok || int(cred.Uid) != os.Getuid() {
		return errors.New("only the user who booted this local cluster may command it")
	}
	return nil
}
