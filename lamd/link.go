package lamd

import (
	"context"
	"fmt"
	"net"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/lamd/nodelink"
)

// linker hangs pods on the link that has the node's address.
type linker struct {
	node func() (nodelink.PodLink, error)
}

// Attach implements podLinker.
func (l linker) Attach(ctx context.Context, pid int, _ job.ID, self job.PodAddress) (string, error) {
	mac, err := net.ParseMAC(self.MAC)
	if err != nil {
		return "", fmt.Errorf("link of pod %d: %w", self.Pod, err)
	}
	node, err := l.node()
	if err != nil {
		return "", err
	}
	return nodelink.Name, node.Attach(ctx, nodelink.Link{NetnsPID: pid, MAC: mac})
}
