// Package dump repeats what the kernel could not list in one go.
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries bounds how often a listing is repeated that changes interrupt again and again.
const tries = 11

// Whole repeats a listing that changes interrupted (NLM_F_DUMP_INTR): it may lack entries
// that were there all the time.
func Whole[T any](list func() ([]T, error)) (out []T, err error) {
	for range tries {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}
