package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

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
		data = toYAML(data)
	} else {
		data = escape(data, func(out []byte, r rune) []byte {
			for _, unit := range utf16.AppendRune(nil, r) {
				out = fmt.Appendf(out, `\u%04x`, unit)
			}
			return out
		})
	}
	_, err = p.io.Out.Write(data)
	return err
}

// toYAML is JSON as YAML. With characters in it that rule a terminal, or that the library takes for
// none of YAML, it stays as it is but for these: JSON is YAML, and strings in quotes may have escapes.
func toYAML(data []byte) []byte {
	out, err := yaml.JSONToYAML(data)
	if err == nil && !bytes.ContainsFunc(data, unprintable) && !bytes.ContainsFunc(out, unprintable) {
		return out
	}
	return escape(data, func(out []byte, r rune) []byte { return fmt.Appendf(out, `\U%08X`, r) })
}

// unprintable reports whether a character of the output may do something else than be seen.
func unprintable(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

// escape writes the characters of strings in JSON that are [unprintable] as encode appends them.
// [json] itself does so with those of ASCII but DEL, and few others.
func escape(data []byte, encode func([]byte, rune) []byte) []byte {
	if !bytes.ContainsFunc(data, unprintable) {
		return data
	}
	var out []byte
	for _, r := range string(data) {
		if unprintable(r) {
			out = encode(out, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
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
