package pod

import (
	"context"
	"fmt"
	"os"

	"github.com/rs/zerolog"

	"github.com/lampause/lampause/internal/pid1"
)

// initSock is the number under which pod-init inherits its socket, and
// initConfFD that of the memory file with its initConf.
const (
	initSock   = 3
	initConfFD = 4
)

// initConf is what pod-init needs to know.
type initConf struct {
	Hostname string `json:"hostname"`
	TmpDir   string `json:"tmp_dir"` // becomes podTmp; empty for none
}

// runInit is `lamd podinit`: pid 1 of a pod. It completes the namespaces,
// starts processes as the supervisor asks, reaps everything, and returns when
// the supervisor is gone; the kernel then kills all that is left in the pid
// namespace (pid_namespaces(7)). What runs is the supervisor's to know.
func runInit(ctx context.Context, log zerolog.Logger) error {
	if err := pid1.Serve(ctx, initSock, completePod); err != nil {
		return fmt.Errorf("podinit: %w", err)
	}
	log.Info().Msg("supervisor is gone; the pod ends")
	return nil
}

// completePod reads the configuration that pod-init inherited, and does as it
// says.
func completePod() error {
	conf := os.NewFile(initConfFD, "conf")
	var c initConf
	if err := pid1.ReadMemoryFile(conf, &c); err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := conf.Close(); err != nil {
		return err
	}
	return completeNamespaces(c)
}
