//go:build faultpoints

package faultpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Dir is the environment variable that names the folder by which a test and a program talk:
// the program adds a line to "seen" for each place that it comes by; and kills itself when it
// has come by the place in "armed" as often as that says: "TIMES PLACE".
const Dir = "FAULTPOINTS"

var (
	dir = os.Getenv(Dir)
	mu  sync.Mutex
	// armed is what the file said last, left how often the program is still to come by.
	armed string
	left  int
)

// Here is a place at which a test may kill the program: where names what was changed, what
// which of several; what may be empty.
func Here(where, what string) {
	if dir == "" {
		return
	}
	place := where
	if what != "" {
		place += ": " + what
	}
	mu.Lock()
	defer mu.Unlock()
	tell(place)
	if !last(place) {
		return
	}
	// Whoever comes next, the program that is started again among them, lives.
	_ = os.Rename(filepath.Join(dir, "armed"), filepath.Join(dir, "died"))
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {}
}

// tell adds the place to those that were come by.
func tell(place string) {
	f, err := os.OpenFile(filepath.Join(dir, "seen"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic("faultpoint: " + err.Error())
	}
	_, _ = fmt.Fprintln(f, place)
	_ = f.Close()
}

// last reports whether the place is the armed one, come by for the last time.
func last(place string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "armed"))
	if err != nil {
		armed = ""
		return false
	}
	times, at, _ := strings.Cut(string(data), " ")
	if string(data) != armed {
		armed = string(data)
		left, _ = strconv.Atoi(times)
	}
	if at != place {
		return false
	}
	left--
	return left == 0
}
