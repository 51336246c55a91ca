package topology

import (
	"fmt"
	"iter"
	"math/bits"
	"strconv"
	"strings"
)

// Octets are some of the 256 addresses of a /24, by their last octets. They are written
// as a list of numbers and ranges in order: "2,5-9".
type Octets [4]uint64

// Add takes in an octet.
func (o *Octets) Add(octet byte) { o[octet/64] |= 1 << (octet % 64) }

// Has reports whether an octet is among them.
func (o Octets) Has(octet byte) bool { return o[octet/64]&(1<<(octet%64)) != 0 }

// Len is how many there are, 0 to 256.
func (o Octets) Len() int {
	n := 0
	for _, word := range o {
		n += bits.OnesCount64(word)
	}
	return n
}

// All are the octets in order.
func (o Octets) All() iter.Seq[byte] {
	return func(yield func(byte) bool) {
		for i, word := range o {
			for ; word != 0; word &= word - 1 {
				if !yield(byte(64*i + bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

func (o Octets) String() string {
	var b strings.Builder
	for first := 0; first < 256; first++ {
		if !o.Has(byte(first)) {
			continue
		}
		last := first
		for last < 255 && o.Has(byte(last+1)) {
			last++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(first))
		if last > first {
			b.WriteString("-" + strconv.Itoa(last))
		}
		first = last
	}
	return b.String()
}

// MarshalText writes the list.
func (o Octets) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads the list; the empty one is none.
func (o *Octets) UnmarshalText(text []byte) error {
	*o = Octets{}
	if len(text) == 0 {
		return nil
	}
	for part := range strings.SplitSeq(string(text), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 8)
		if err != nil {
			return fmt.Errorf("octets %q: %q is no number of 0 to 255", text, from)
		}
		last, err := strconv.ParseUint(to, 10, 8)
		if err != nil || last < first {
			return fmt.Errorf("octets %q: %q is no range within 0 to 255", text, part)
		}
		for octet := first; octet <= last; octet++ {
			o.Add(byte(octet))
		}
	}
	return nil
}
