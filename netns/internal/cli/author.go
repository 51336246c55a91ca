package cli

import (
	"os"
	"os/user"
	"strconv"
)

// author names who runs netns, "alice@host", for the records: the person who called
// sudo where that is how root came to be, else the user. It is what this program
// says and no proof.
func author() string {
	return authorOf(os.Getuid(), os.Getenv("SUDO_USER"), user.LookupId, os.Hostname)
}

func authorOf(uid int, sudo string, lookup func(string) (*user.User, error), hostname func() (string, error)) string {
	// A container has no list of users.
	name := "uid " + strconv.Itoa(uid)
	if uid == 0 {
		name = "root"
	}
	if u, err := lookup(strconv.Itoa(uid)); err == nil && u.Username != "" {
		name = u.Username
	}
	if uid == 0 && sudo != "" {
		name = sudo
	}
	if host, err := hostname(); err == nil && host != "" {
		return name + "@" + host
	}
	return name
}
