package link

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoSysctl: the kernel has no setting of that name; for one of a device, the
// device may be gone.
var ErrNoSysctl = errors.New("no such setting")

// Sysctl reads a setting below /proc/sys, named by its path such as
// "net/ipv4/ip_forward": a device's name may contain dots.
func (n *NS) Sysctl(key string) (value string, err error) {
	err = n.Do(func() error {
		value, err = readSysctl(key)
		return err
	})
	return value, err
}

// EnsureSysctl writes a setting below /proc/sys where it differs, and reports
// whether it did.
func (n *NS) EnsureSysctl(key, value string) (changed bool, err error) {
	err = n.Do(func() error {
		have, err := readSysctl(key)
		if err != nil || have == value {
			return err
		}
		changed = true
		return writeSysctl(key, value)
	})
	return changed && err == nil, err
}

func sysctlPath(key string) string { return filepath.Join("/proc/sys", key) }

// readSysctl reads without package os, which would have the runtime poll the file: that is
// ten system calls in the place of four, and there are four settings of each pod.
func readSysctl(key string) (string, error) {
	fd, err := openSysctl(key, unix.O_RDONLY)
	if err != nil {
		return "", sysctlError(key, err)
	}
	defer unix.Close(fd)
	var value []byte
	for buf := make([]byte, 512); ; {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return "", sysctlError(key, err)
		case n == 0:
			return strings.TrimSpace(string(value)), nil
		default:
			value = append(value, buf[:n]...)
		}
	}
}

func writeSysctl(key, value string) error {
	fd, err := openSysctl(key, unix.O_WRONLY)
	if err != nil {
		return sysctlError(key, err)
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Write(fd, []byte(value))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sysctl: setting %s to %s: %w", key, value, err)
		}
		return nil
	}
}

func openSysctl(key string, flags int) (fd int, err error) {
	for {
		fd, err = unix.Open(sysctlPath(key), flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func sysctlError(key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoSysctl
	}
	return fmt.Errorf("sysctl %s: %w", key, err)
}
