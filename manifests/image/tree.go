package main

import (
	"archive/tar"
	"bytes"
	"maps"
	"os"
	"path"
	"slices"
	"time"
)

// epoch is the time of every file: images of the same inputs are the same.
var epoch = time.Unix(0, 0).UTC()

// tree is the content of a layer, by absolute path.
type tree map[string]entry

// entry is a file if it has a source or is regular, else a folder or a link.
type entry struct {
	header tar.Header
	source string // path on this machine; "" when text holds the content
	text   string
}

// file adds an executable or library from this machine, whole even if it is a
// link there.
func (t tree) file(to, from string) {
	t[to] = entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: 0o755}, source: from}
}

func (t tree) text(to string, mode int64, text string) {
	t[to] = entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: mode}, text: text}
}

func (t tree) folder(to string, mode int64) {
	t[to] = entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: mode}}
}

func (t tree) link(from, to string) {
	t[from] = entry{header: tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: to}}
}

// tar is the tree as an archive: sorted, folders before what is in them.
func (t tree) tar() ([]byte, error) {
	whole := maps.Clone(t)
	for name := range t {
		for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
			if _, ok := whole[dir]; !ok {
				whole.folder(dir, 0o755)
			}
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(whole)) {
		e := whole[name]
		data := []byte(e.text)
		if e.source != "" {
			var err error
			if data, err = os.ReadFile(e.source); err != nil {
				return nil, err
			}
		}
		h := e.header
		h.Name, h.Size, h.ModTime = name[1:], int64(len(data)), epoch
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
