// Package alloc gives out numbers and prefixes: netIDs to tenants, node subnets
// to nodes. What was freed is given out last, oldest first, so that whoever
// still believes in an old owner has the most time to learn better.
//
// It is pure: no I/O; randomness is injected. An allocator belongs to one
// goroutine.
package alloc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// ErrExhausted: everything is in use.
var ErrExhausted = errors.New("all are in use")

// randomTries bounds how often a random number that is taken is drawn anew
// before the numbers after it are tried in turn. With half of the range taken
// 64 draws fail once in 2^64.
const randomTries = 64

// IDs gives out netIDs: at random among those that were never used, so that
// they cannot be guessed; once none is left, the freed ones, oldest first.
type IDs struct {
	min, max netid.ID
	random   io.Reader
	used     map[netid.ID]struct{}
	freed    fifo[netid.ID]
}

// NewIDs is an allocator of the numbers min to max, both inclusive. random is
// crypto/rand.Reader, save in tests. It is an error if the range is not within
// netid.Min to netid.Max.
func NewIDs(min, max netid.ID, random io.Reader) (*IDs, error) {
	if min < netid.Min || max > netid.Max || min > max {
		return nil, fmt.Errorf("netID range %d to %d is not within %d to %d", min, max, netid.Min, netid.Max)
	}
	return &IDs{min: min, max: max, random: random, used: map[netid.ID]struct{}{}}, nil
}

// Use marks id as in use. It reports whether id was free and in range.
func (a *IDs) Use(id netid.ID) bool {
	if id < a.min || id > a.max {
		return false
	}
	if _, ok := a.used[id]; ok {
		return false
	}
	a.freed.remove(id)
	a.used[id] = struct{}{}
	return true
}

// Release frees id. It does nothing when id is not in use.
func (a *IDs) Release(id netid.ID) {
	if _, ok := a.used[id]; ok {
		delete(a.used, id)
		a.freed.push(id)
	}
}

// Allocate marks a free id as in use and returns it. Errors: ErrExhausted, or
// that of the source of randomness.
func (a *IDs) Allocate() (netid.ID, error) {
	id, err := a.fresh()
	if err != nil {
		return 0, err
	}
	if id == 0 {
		var ok bool
		if id, ok = a.freed.pop(); !ok {
			return 0, fmt.Errorf("netIDs %d to %d: %w", a.min, a.max, ErrExhausted)
		}
	}
	a.used[id] = struct{}{}
	return id, nil
}

// fresh draws among the never used; 0 when there is none.
func (a *IDs) fresh() (netid.ID, error) {
	size := uint32(a.max-a.min) + 1
	if int(size) == len(a.used)+a.freed.len() {
		return 0, nil
	}
	var n uint32
	for range randomTries {
		var err error
		if n, err = uniform(a.random, size); err != nil {
			return 0, fmt.Errorf("draw a netID: %w", err)
		}
		if a.isFresh(a.min + netid.ID(n)) {
			return a.min + netid.ID(n), nil
		}
	}
	for range size {
		if n++; n == size {
			n = 0
		}
		if a.isFresh(a.min + netid.ID(n)) {
			return a.min + netid.ID(n), nil
		}
	}
	return 0, nil
}

func (a *IDs) isFresh(id netid.ID) bool {
	_, used := a.used[id]
	return !used && !a.freed.has(id)
}

// uniform draws from 0 to n-1, all alike: numbers beyond the last whole
// multiple of n are drawn anew.
func uniform(random io.Reader, n uint32) (uint32, error) {
	limit := uint64(1) << 32 / uint64(n) * uint64(n)
	for {
		var b [4]byte
		if _, err := io.ReadFull(random, b[:]); err != nil {
			return 0, err
		}
		if v := binary.BigEndian.Uint32(b[:]); uint64(v) < limit {
			return v % n, nil
		}
	}
}
