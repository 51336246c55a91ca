package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// SmallDisk is a small file system of its own in the place of a folder.
type SmallDisk struct{ dir string }

// EtcdDisk puts the data of the etcd in the controller on a small disk; the controller must not run meanwhile.
func (l *Lab) EtcdDisk(ctx context.Context, bytes int64) (*SmallDisk, error) {
	return newSmallDisk(ctx, l.dataDir(), bytes)
}

// MemberDisk puts the data of one of etcd's members, from 1, on a small disk; the member must not run meanwhile.
func (l *Lab) MemberDisk(ctx context.Context, n int, bytes int64) (*SmallDisk, error) {
	return newSmallDisk(ctx, filepath.Join(l.memberDir(n), "data"), bytes)
}

// newSmallDisk mounts a file system of that size on dir, with what is in dir.
func newSmallDisk(ctx context.Context, dir string, bytes int64) (*SmallDisk, error) {
	aside := dir + ".aside"
	if err := os.Rename(dir, aside); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", bytes)); err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	d := &SmallDisk{dir}
	if out, err := exec.CommandContext(ctx, "cp", "-a", aside+"/.", dir).CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("copy %s to a small disk: %w: %s", aside, err, out), d.End())
	}
	return d, os.RemoveAll(aside)
}

// Fill takes the room that there is, but for so many bytes.
func (d *SmallDisk) Fill(leave int64) error {
	if leave == 0 {
		return fill(d.ballast())
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return fmt.Errorf("free room on %s: %w", d.dir, err)
	}
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-leave)
	return errors.Join(err, f.Close())
}

// Free gives back what Fill has taken.
func (d *SmallDisk) Free() error { return os.Remove(d.ballast()) }

// End takes the disk away, with all that is on it.
func (d *SmallDisk) End() error {
	if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}

func (d *SmallDisk) ballast() string { return filepath.Join(d.dir, "ballast") }
