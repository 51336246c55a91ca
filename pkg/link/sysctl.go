package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

func readSysctl(key string) (string, error) {
	data, err := os.ReadFile(sysctlPath(key))
	if err != nil {
		return "", sysctlError(key, err)
	}
	return strings.TrimSpace(string(data)), nil
}

func writeSysctl(key, value string) error {
	f, err := os.OpenFile(sysctlPath(key), os.O_WRONLY, 0)
	if err != nil {
		return sysctlError(key, err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return sysctlError(fmt.Sprintf("%s: setting it to %s", key, value), err) // its device may have gone meanwhile
	}
	return nil
}

func sysctlError(key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNoSysctl
	}
	return fmt.Errorf("sysctl %s: %w", key, err)
}
