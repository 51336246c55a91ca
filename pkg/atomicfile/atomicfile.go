// Package atomicfile replaces files whole: a reader finds the old file or the new one.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
)

// Write makes data the content of the file at path, with that mode whatever the
// umask, on disk before it returns: also after a crash of the machine there is the old
// file or the new one. Meanwhile a file of a hidden name that ends in
// ".new" is beside it, always the same one, so that what a crash leaves of it is
// replaced the next time. Where it fails the old file stands.
func Write(path string, data []byte, mode fs.FileMode) error {
	if err := replace(path, data, mode, true); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Replace is Write that does not wait for the disk: after a crash of the machine, unlike
// one of the program, the file may be cut short. It is for what is written often and of no
// use then, or made anew.
func Replace(path string, data []byte, mode fs.FileMode) error {
	return replace(path, data, mode, false)
}

func replace(path string, data []byte, mode fs.FileMode, sync bool) error {
	tmp := filepath.Join(filepath.Dir(path), "."+strings.TrimPrefix(filepath.Base(path), ".")+".new")
	err := fill(tmp, data, mode, sync)
	faultpoint.Here("file written beside", filepath.Base(path))
	if err == nil {
		err = os.Rename(tmp, path)
	}
	faultpoint.Here("file", filepath.Base(path))
	if err != nil {
		// Half a file is of no use, and the disk may be full.
		_ = os.Remove(tmp)
	}
	return err
}

func fill(path string, data []byte, mode fs.FileMode, sync bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	// The mode of a file that was left behind may be another.
	err = errors.Join(err, f.Chmod(mode))
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir puts the name on disk.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
