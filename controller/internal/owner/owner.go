// Package owner gives a data directory to the user that the controller runs as. In
// Kubernetes an init container does that as root, since a folder of the node is root's when
// the kubelet makes it, and so is all that a controller of an earlier version, which ran as
// root, left there.
//
// It changes owners and nothing else, and nothing outside of the directory.
package owner

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Command is the argument that asks for it.
const Command = "give-data"

// Main runs `k8s-ovs-controller give-data` with the arguments after that word, and returns
// the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("k8s-ovs-controller "+Command, flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("data-dir", "", "`folder` to give away; made if it is not there")
	to := flags.String("to", "", "`UID:GID` that gets it")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	uid, gid, err := parse(*to)
	if err != nil || *dir == "" || flags.NArg() > 0 {
		fmt.Fprintf(stderr, "k8s-ovs-controller %s: needs --data-dir FOLDER and --to UID:GID in numbers, and nothing else\n", Command)
		return 2
	}
	given, err := Give(*dir, uid, gid)
	if err != nil {
		fmt.Fprintf(stderr, "k8s-ovs-controller %s: %v\n", Command, err)
		return 1
	}
	fmt.Fprintf(stdout, "%s: %d files and folders given to %d:%d\n", *dir, given, uid, gid)
	return 0
}

func parse(to string) (uid, gid int, err error) {
	user, group, _ := strings.Cut(to, ":")
	if uid, err = strconv.Atoi(user); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(group)
	return uid, gid, err
}

// Give makes dir and all that is in it the user's and the group's, and says how much was
// not before. Links are given and not followed. It may be interrupted and run again.
func Give(dir string, uid, gid int) (given int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	// What was the user's before may have links in it: they lead nowhere outside.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := root.Lstat(path)
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == uid && int(st.Gid) == gid {
			return nil
		}
		given++
		return root.Lchown(path, uid, gid)
	})
	if err != nil {
		return given, fmt.Errorf("give %s to %d:%d: %w", dir, uid, gid, err)
	}
	return given, nil
}
