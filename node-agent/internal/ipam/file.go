package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	fileName    = "addresses.json"
	fileVersion = 1
)

// errNoFile: there is nothing to read, which is as it should be on a new node.
var errNoFile = errors.New("no file")

// header is the small part of the pool as it is stored.
type header struct {
	Version int          `json:"version"`
	BootID  string       `json:"bootID"`
	Subnet  netip.Prefix `json:"subnet"`
	Start   netip.Addr   `json:"start"`
	Scanned uint32       `json:"scanned"`
}

// state is the pool as it is stored.
type state struct {
	header
	Freed  []netip.Addr `json:"freed"`
	Leases []Lease      `json:"leases"`
}

// first is the address by which a pool knows a lease; not valid where there is none.
func (l Lease) first() netip.Addr {
	if len(l.Addresses) == 0 {
		return netip.Addr{}
	}
	return l.Addresses[0]
}

// leaseFields are those of a Lease that are stored as they are.
type leaseFields Lease

// storedLease is a lease in the file: one address as ever, a list of them beside it where
// there are two.
type storedLease struct {
	Address   netip.Addr   `json:"address"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	leaseFields
}

// stored is the lease as it stands in the file.
func (l Lease) stored() storedLease {
	return storedLease{l.first(), topology.Listed(l.Addresses), leaseFields(l)}
}

// UnmarshalJSON reads a lease of any release. One that has no MAC has the one that follows
// from its address.
func (l *Lease) UnmarshalJSON(data []byte) error {
	var s storedLease
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	addresses, err := topology.Unlisted(s.Address, s.Addresses)
	if err != nil {
		return fmt.Errorf("lease of %s: addresses: %w", Lease(s.leaseFields).Attachment(), err)
	}
	*l = Lease(s.leaseFields)
	if l.Addresses = addresses; len(l.MAC) == 0 && len(addresses) > 0 {
		l.MAC = cniapi.MAC(topology.MAC(l.first()))
	}
	return nil
}

// encode writes the JSON of a state, its leases encoded before and each on a
// line. A pool is written with every ADD and every DEL: to have encoding/json walk
// through all of it each time costs more than the rest of an ADD when there are a
// thousand.
func encode(h header, freed iter.Seq[netip.Addr], leases iter.Seq[[]byte]) ([]byte, error) {
	data, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encoding the address pool: %w", err)
	}
	data = slices.Grow(data, 64<<10)
	data = append(data[:len(data)-1], `,"freed":[`...)
	sep := ""
	for addr := range freed {
		data = append(addr.AppendTo(append(append(data, sep...), '"')), '"')
		sep = ","
	}
	data = append(data, `],"leases":[`...)
	sep = "\n"
	for l := range leases {
		data = append(append(data, sep...), l...)
		sep = ",\n"
	}
	return append(data, "\n]}\n"...), nil
}

// stateFile is replaced whole, so that a reader, also one after the agent was killed, finds
// the old one or the new one.
//
// It is not synced to disk. That would cost every ADD a wait for the disk, and
// gain nothing: what fsync guards against is a crash of the machine, and that
// ends every sandbox; the boot ID in the file then says that its leases are void.
// A file that the crash left torn does not parse and is void as well.
type stateFile struct {
	path string
	// replace is [statefile.Replace]; a field, so that a test can stop in front of it.
	replace func(path string, data []byte) error
}

// fewBytes and fewFiles are how little room of a file system makes it worth to try
// whether the file can be written: a pool of 1,000 leases has 300 KB.
const (
	fewBytes = 1 << 20
	fewFiles = 16
)

// roomy reports that the file system surely takes the file.
func (f stateFile) roomy() bool {
	var s unix.Statfs_t
	if unix.Statfs(filepath.Dir(f.path), &s) != nil || s.Flags&unix.ST_RDONLY != 0 {
		return false
	}
	// Some file systems count no files.
	return s.Bavail*uint64(s.Bsize) >= fewBytes && (s.Files == 0 || s.Ffree >= fewFiles)
}

func (f stateFile) there() bool {
	_, err := os.Stat(f.path)
	return err == nil
}

func newStateFile(dir string) stateFile {
	return stateFile{path: filepath.Join(dir, fileName), replace: statefile.Replace}
}

func (f stateFile) read() (state, error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, errNoFile
	}
	if err != nil {
		return state{}, err
	}
	var st state
	if err := json.Unmarshal(data, &st); err != nil {
		return state{}, fmt.Errorf("%s is not valid JSON of its form: %w", f.path, err)
	}
	if st.Version != fileVersion {
		return state{}, fmt.Errorf("%s has version %d; this agent reads %d", f.path, st.Version, fileVersion)
	}
	return st, nil
}

// OfOtherBoot reports whether the pool in dir was written before the machine's last boot, so that its
// leases are void; false where there is none that can be read.
func OfOtherBoot(dir, bootID string) bool {
	st, err := newStateFile(dir).read()
	return err == nil && st.BootID != bootID
}

// Stored are the leases that the pool of subnets in dir has written down in this boot; none where its file is of another
// boot or subnet, or cannot be read.
func Stored(dir string, subnets []netip.Prefix, bootID string) []Lease {
	st, err := newStateFile(dir).read()
	if err != nil || st.BootID != bootID || st.Subnet != subnets[0] {
		return nil
	}
	return slices.DeleteFunc(st.Leases, func(l Lease) bool { return !subnets[0].Contains(l.first()) })
}

// Depart writes down that attachments are leaving, as [Pool.Leave] does, in the file of a pool that nobody has open. One
// without a lease is no error.
func Depart(dir string, as ...cniapi.Attachment) error {
	f := newStateFile(dir)
	st, err := f.read()
	if errors.Is(err, errNoFile) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("address pool: %w", err)
	}
	marked := false
	for i, l := range st.Leases {
		if !l.Leaving && slices.Contains(as, l.Attachment()) {
			st.Leases[i].Leaving, marked = true, true
		}
	}
	if !marked {
		return nil
	}
	data, err := encode(st.header, slices.Values(st.Freed), func(yield func([]byte) bool) {
		for _, l := range st.Leases {
			// A struct of strings, addresses and a time that was read: no error.
			one, _ := json.Marshal(l.stored())
			if !yield(one) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return f.write(data)
}

func (f stateFile) write(data []byte) error {
	if err := f.replace(f.path, data); err != nil {
		return fmt.Errorf("address pool: %w", err)
	}
	return nil
}
