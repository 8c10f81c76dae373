package pod

import (
	"context"
	"fmt"

	"github.com/lampause/lampause/job"
	"github.com/lampause/lampause/lamd/nodelink"
)

// network is the link of the pod, inside the pod's network namespace.
type network interface {
	// up configures the link; it may be repeated, after down or with another
	// book. link "" means that there is none.
	up(link string, self job.PodAddress, book []job.PodAddress) error
	// down cuts the pod off.
	down() error
	// move learns where the other pods are now.
	move(self job.PodAddress, book []job.PodAddress) error
}

// podNetwork is the link that lamd made (package nodelink).
type podNetwork struct{}

func (podNetwork) up(link string, self job.PodAddress, book []job.PodAddress) error {
	if link == "" {
		return nil
	}
	if link != nodelink.Name {
		return fmt.Errorf("link is called %q, want %q", link, nodelink.Name)
	}
	return nodelink.Inside(self, book)
}

func (podNetwork) down() error { return nodelink.CutOff() }

func (podNetwork) move(self job.PodAddress, book []job.PodAddress) error {
	return nodelink.Neighbours(self, book)
}

// linkUp configures the link with the newest address book.
func (s *supervisor) linkUp(_ context.Context) error {
	if s.spec.LinkReady {
		return nil
	}
	s.mu.Lock()
	book := s.book
	s.mu.Unlock()
	return s.net.up(nodelink.Name, s.self, book)
}
