package plugin

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

const (
	// nsGetNSType is NS_GET_NSTYPE (linux/nsfs.h): the kind of a namespace, a
	// CLONE_NEW* constant.
	nsGetNSType = 0xb703
	// ownNetns is the namespace of the plugin's main thread, which is the host's.
	ownNetns = "/proc/self/ns/net"
)

// checkNetns says what is wrong with the path to a sandbox's network
// namespace: it is looked at before anything is made for it.
func checkNetns(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS: %s does not exist", path)
	case err != nil:
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS: %s: %w", path, err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	// The ioctl is for namespace files alone: to a device it could mean anything.
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS: %s is not a network namespace", path)
	}
	if kind, err := unix.IoctlRetInt(fd, nsGetNSType); err == nil && kind != unix.CLONE_NEWNET {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS: %s is a namespace, but not a network namespace", path)
	}
	var theirs, own unix.Stat_t
	if unix.Fstat(fd, &theirs) == nil && unix.Stat(ownNetns, &own) == nil && theirs.Dev == own.Dev && theirs.Ino == own.Ino {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS: %s is the host's network namespace; a pod with hostNetwork needs no CNI", path)
	}
	return nil
}
