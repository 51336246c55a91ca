package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

// print writes v as --output says; table writes it for people.
func print[T any](p *program, v T, table func(io.Writer, T) error) error {
	if p.output == "table" {
		return table(p.io.Out, v)
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	data = append(data, '\n')
	if p.output == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return fmt.Errorf("encode output: %w", err)
		}
	}
	_, err = p.io.Out.Write(data)
	return err
}

func writeVersion(w io.Writer, i version.Info) error {
	_, err := fmt.Fprintf(w, "netns %s\n", i)
	return err
}

// progress shows what is being waited for: on a terminal in one line that is
// rewritten, else a line for each change.
type progress struct {
	w       io.Writer
	rewrite bool
	shown   bool
}

// eraseLine returns to the start of the line and clears it (ECMA-48, EL).
const eraseLine = "\r\x1b[K"

func (p *progress) show(text string) {
	if !p.rewrite {
		_ = view.WriteLine(p.w, text)
		return
	}
	fmt.Fprint(p.w, eraseLine+view.Printable(text))
	p.shown = true
}

// clear takes the line away again.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, eraseLine)
		p.shown = false
	}
}
