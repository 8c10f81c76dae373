package local

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/control"
	"github.com/lampause/lampause/job"
)

// TestMain lets the test binary stand in for lamd: as holder and node-init it
// runs the code under test, as daemon the fake below. So the race detector
// watches all of them.
func TestMain(m *testing.M) {
	log := zerolog.New(os.Stderr).With().Timestamp().Logger()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "local":
			os.Exit(HolderMain(context.Background(), log))
		case "node":
			os.Exit(NodeMain(context.Background(), log))
		case "run":
			os.Exit(fakeDaemon(os.Args[2:]))
		case "crash":
			fmt.Fprintln(os.Stderr, "no use today")
			os.Exit(1)
		}
	}
	// Children would each wait a second at their end for reports of races.
	if os.Getenv("GORACE") == "" {
		_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
	os.Exit(m.Run())
}

const fakePort = "7948"

// fakeDaemon answers GET /v1/nodes like lamd, from what its peers say to a
// GET /boot over the nodes' network.
func fakeDaemon(args []string) int {
	fs := flag.NewFlagSet("run", flag.ExitOnError)
	node := fs.String("node", "", "")
	addr := fs.String("addr", "", "")
	run := fs.String("runtime-dir", "", "")
	state := fs.String("state-dir", "", "")
	peers := fs.String("peers", "", "")
	boot := fs.Uint64("boot", 0, "")
	session := fs.Uint64("session", 0, "")
	_ = fs.Int("slots", 0, "")
	spare := fs.Bool("spare", false, "")
	_ = fs.Parse(args)
	if *state == "" || *session == 0 {
		return 2
	}
	role := "compute"
	if *spare {
		role = "spare"
	}
	self := control.Node{Node: job.NodeID(*node), Addr: *addr, State: "alive", Role: role, Boot: job.Boot(*boot)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /boot", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(self) })
	mux.HandleFunc("GET /v1/nodes", func(w http.ResponseWriter, r *http.Request) {
		var list []control.Node
		for _, p := range strings.Split(*peers, ",") {
			name, ip, _ := strings.Cut(p, "=")
			n := control.Node{Node: job.NodeID(name), Addr: ip, State: "dead"}
			ctx, cancel := context.WithTimeout(r.Context(), 200*time.Millisecond)
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(ip, fakePort)+"/boot", nil)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_ = json.NewDecoder(resp.Body).Decode(&n)
				_ = resp.Body.Close()
			}
			cancel()
			list = append(list, n)
		}
		_ = json.NewEncoder(w).Encode(list)
	})
	// What the node looks like from inside.
	mux.HandleFunc("GET /inside", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(lookAround())
	})
	serveHeld(mux)
	tcp, err := net.Listen("tcp", net.JoinHostPort(*addr, fakePort))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	sock := filepath.Join(*run, control.Socket)
	_ = os.Remove(sock)
	l, err := net.Listen("unix", sock)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() { _ = http.Serve(tcp, mux) }()
	_ = http.Serve(l, mux)
	return 0
}

// serveHeld lets a test watch a connection from this node to another one: GET
// /hold?addr=A makes it, GET /held answers "open" or how it has ended.
func serveHeld(mux *http.ServeMux) {
	var held net.Conn
	mux.HandleFunc("GET /hold", func(w http.ResponseWriter, r *http.Request) {
		c, err := new(net.Dialer).DialContext(r.Context(), "tcp", net.JoinHostPort(r.FormValue("addr"), fakePort))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		held = c
		_ = json.NewEncoder(w).Encode("made")
	})
	mux.HandleFunc("GET /held", func(w http.ResponseWriter, _ *http.Request) {
		_ = held.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // what has come has come
		_, err := held.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errors.New("open")
		}
		_ = json.NewEncoder(w).Encode(err.Error())
	})
}

// inside is what a daemon sees.
type inside struct {
	Hostname  string
	PID, PPID int
	Links     []string
	Sys       []string // of /sys/class/net
	Shm       []string
	FDs       int
	TmpDir    string
}

func lookAround() inside {
	var i inside
	i.Hostname, _ = os.Hostname()
	i.PID, i.PPID, i.TmpDir = os.Getpid(), os.Getppid(), os.TempDir()
	ifs, _ := net.Interfaces()
	for _, l := range ifs {
		i.Links = append(i.Links, l.Name)
	}
	i.Sys, i.Shm = list("/sys/class/net"), list("/dev/shm")
	return i
}

func list(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
