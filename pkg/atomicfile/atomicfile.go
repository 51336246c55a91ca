// Package atomicfile replaces files whole: a reader, also one after a crash of
// the machine, finds the old file or the new one.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Write makes data the content of the file at path, with that mode whatever the
// umask, on disk before it returns. Meanwhile a file of a hidden name that ends in
// ".new" is beside it, always the same one, so that what a crash leaves of it is
// replaced the next time. Where it fails the old file stands.
func Write(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	tmp := filepath.Join(dir, "."+strings.TrimPrefix(filepath.Base(path), ".")+".new")
	err := fill(tmp, data, mode)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(dir)
}

func fill(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	// The mode of a file that was left behind may be another.
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
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
