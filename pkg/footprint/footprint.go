// Package footprint gives back memory that a program needed only to start, or for a burst of work.
package footprint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Shrink gives back what the heap does not need any more, and those pages of the program's
// own code and constants that are mapped: of some 37 MB that a start touches, most in the
// initialisation of libraries, 9 are needed later. These come back from the page cache, or
// the disk, when they are used. It takes some 10 ms.
func Shrink() error {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("the program's own pages: %w", err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("the program's own pages: %w", err)
	}
	defer f.Close()
	areas, err := own(f, exe)
	for _, a := range areas {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, a.start, a.end-a.start, unix.MADV_DONTNEED); errno != 0 {
			err = errors.Join(err, fmt.Errorf("giving back the program's pages from %#x to %#x: %w", a.start, a.end, errno))
		}
	}
	return err
}

// Kept keeps a program small whose work comes in bursts: who calls Look every few seconds has
// what a burst took given back. The zero value is ready to use, by one goroutine at a time.
type Kept struct {
	// idle is what the program has in memory a look after it was shrunk, in bytes: what it
	// needs while nothing special happens. 0: not known yet.
	idle int
	// shrunk is that the last look has shrunk it.
	shrunk bool
}

// Look shrinks the program the first time, and whenever it has an eighth more in memory than it
// had a look after it was last shrunk.
func (k *Kept) Look() error {
	now, err := resident()
	if err != nil {
		return err
	}
	if k.due(now) {
		return Shrink()
	}
	return nil
}

// due is whether to shrink a program that has so many bytes in memory.
func (k *Kept) due(now int) bool {
	if k.shrunk {
		k.shrunk, k.idle = false, now
		return false
	}
	k.shrunk = k.idle == 0 || now > k.idle+k.idle/8
	return k.shrunk
}

// resident is what the program has in memory, in bytes: the second number of statm (proc(5)).
func resident() (int, error) {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("what the program has in memory: %w", err)
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0, fmt.Errorf("what the program has in memory: %q in /proc/self/statm", data)
	}
	pages, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0, fmt.Errorf("what the program has in memory: %w", err)
	}
	return pages * os.Getpagesize(), nil
}

// area is a part of the address space; end is the first address behind it.
type area struct{ start, end uintptr }

// own reads the areas of smaps (proc(5)) that show the file exe and that can be read again
// from it: they may not be written, and nobody, such as a debugger, has.
func own(smaps io.Reader, exe string) (areas []area, err error) {
	var at *area
	changed := false
	take := func() {
		if at != nil && !changed {
			areas = append(areas, *at)
		}
	}
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		if name, ok := strings.CutSuffix(key, ":"); ok {
			changed = changed || name == "Anonymous" && strings.TrimSpace(value) != "0 kB"
			continue
		}
		take()
		at, changed = nil, false
		perms, _, _ := strings.Cut(value, " ")
		if !strings.HasSuffix(value, " "+exe) || !strings.HasPrefix(perms, "r-") {
			continue
		}
		from, to, _ := strings.Cut(key, "-")
		start, startErr := strconv.ParseUint(from, 16, 64)
		end, endErr := strconv.ParseUint(to, 16, 64)
		if err := errors.Join(startErr, endErr); err != nil {
			return nil, fmt.Errorf("the program's own pages: %w", err)
		}
		at = &area{start: uintptr(start), end: uintptr(end)}
	}
	take()
	return areas, lines.Err()
}
