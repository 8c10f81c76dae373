package proctool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lampause/lampause/image"
)

// firstDocument reads until one JSON document is whole. Without one it returns
// all the text there was.
func firstDocument(r io.Reader) (string, *Restart, error) {
	var all bytes.Buffer
	var out Restart
	err := json.NewDecoder(io.TeeReader(r, &all)).Decode(&out)
	if err != nil {
		if _, rest := io.Copy(&all, r); rest != nil {
			err = errors.Join(err, rest)
		}
		return all.String(), nil, err
	}
	return all.String(), &out, nil
}

// Inspection is what `inspect -o json` prints: the manifest, and what the
// page files hold.
type Inspection struct {
	Dir      string            `json:"dir"`
	Verified bool              `json:"verified"`
	Pages    map[int]PageCount `json:"pages"` // by pid
	Manifest *image.Manifest   `json:"manifest"`
}

// PageCount is the memory of one process in pages of 4096 bytes.
type PageCount struct {
	Data uint64 `json:"data"`
	Zero uint64 `json:"zero"`
}

func newInspect() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect DIR[@EPOCH]",
		Short: "Verify an image and show what is in it",
		Args:  oneArg("DIR"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			img, err := openImage(args[0])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, img.Close()) }()
			if err := errors.Join(img.Verify(cmd.Context(), workers), img.VerifyDigests(cmd.Context())); err != nil {
				return err
			}
			v := &Inspection{Dir: img.Dir(), Verified: true, Pages: map[int]PageCount{}, Manifest: img.Manifest()}
			for _, p := range v.Manifest.Processes {
				if pages, err := img.Process(p.PID); err == nil {
					data, zero := pages.Pages()
					v.Pages[p.PID] = PageCount{data, zero}
				}
			}
			return report(cmd, v, v.lines()...)
		},
	}
}

// lines is the form for people.
func (v *Inspection) lines() []string {
	m := v.Manifest
	out := []string{
		fmt.Sprintf("%s: epoch %d, taken %s on %s (kernel %s), uid %d; every checksum is right",
			v.Dir, m.Epoch, m.Clock.Wall.Format("2006-01-02 15:04:05"), m.Node, m.Host.Kernel, m.Host.UID),
	}
	for i := range m.Processes {
		p := &m.Processes[i]
		if p.Exited != nil {
			out = append(out, fmt.Sprintf("process %d had ended with status %#x", p.PID, *p.Exited))
			continue
		}
		out = append(out, fmt.Sprintf("process %d (parent %d): %s, %d threads, %d mappings, %.1f MB, in %s",
			p.PID, p.PPID, p.Exe.Path, len(p.Threads), len(p.Maps), float64(v.Pages[p.PID].Data)*image.PageSize/1e6, p.Cwd))
		for _, fd := range p.FDs {
			out = append(out, fmt.Sprintf("  descriptor %d: %s", fd.Num, describe(m.Description(fd.Desc))))
		}
	}
	return out
}

func describe(d *image.Description) string {
	words := []string{string(d.Kind)}
	for _, w := range []string{d.External, d.Path} {
		if w != "" {
			words = append(words, w)
		}
	}
	switch {
	case d.File != nil && d.Kind == image.FDFile:
		words = append(words, fmt.Sprintf("at %d of %d bytes", d.File.Offset, d.File.Size))
	case d.Pipe != nil:
		words = append(words, fmt.Sprintf("%d, %d bytes in it", d.Pipe.ID, len(d.Pipe.Data)))
	case d.TCP != nil:
		words = append(words, d.TCP.Local, d.TCP.Remote)
	case d.Event != nil:
		words = append(words, fmt.Sprintf("count %d", d.Event.Count))
	}
	return strings.Join(words, " ")
}
