package records

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// disk takes what is saved when the test says so.
type disk struct {
	writing chan struct{}

	mu    sync.Mutex
	err   error
	saved []int64
}

func (d *disk) save(s topology.Snapshot) error {
	<-d.writing
	d.mu.Lock()
	defer d.mu.Unlock()
	d.saved = append(d.saved, s.Revision)
	return d.err
}

func (*disk) gone() bool { return false }

// revisions are those that were saved so far.
func (d *disk) revisions() []int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.saved)
}

func at(revision int64) topology.Snapshot { return topology.Snapshot{Revision: revision} }

// A disk that hangs keeps nobody waiting; of what came meanwhile the newest is written, and before the
// end too.
func TestWriterKeepsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{writing: make(chan struct{})}
		w := newWriter(d.save, d.gone, "the records", slog.New(slog.DiscardHandler))
		w.Keep(at(1))
		synctest.Wait()
		for r := range int64(5) {
			w.Keep(at(2 + r))
		}
		d.writing <- struct{}{}
		d.writing <- struct{}{}
		synctest.Wait()
		w.Keep(at(7))
		w.Keep(at(8))
		close(d.writing)
		w.Close()
		if got := d.saved; !cmp.Equal(got[:2], []int64{1, 6}) || got[len(got)-1] != 8 {
			t.Errorf("wrote revisions %v, want 1, 6, and 8 at the end", got)
		}
	})
}

// A burst costs a tenth of the time that it lasts, what came last is on disk soon after it, and one change
// alone at once.
func TestWriterRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 20 * time.Millisecond
		d := &disk{writing: make(chan struct{})}
		close(d.writing)
		w := newWriter(func(s topology.Snapshot) error { time.Sleep(takes); return d.save(s) }, d.gone, "the records", slog.New(slog.DiscardHandler))
		last := int64(0)
		for began := time.Now(); time.Since(began) < 2*time.Second; last++ {
			w.Keep(at(last))
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(10 * takes)
		saved := d.revisions()
		if n := len(saved); n > 12 || n < 9 || saved[0] != 0 || saved[n-1] != last-1 {
			t.Errorf("wrote revisions %v, want ten or so from 0 to %d", saved, last-1)
		}
		time.Sleep(10 * takes)
		w.Keep(at(1000))
		time.Sleep(takes + time.Millisecond)
		if saved := d.revisions(); saved[len(saved)-1] != 1000 {
			t.Errorf("one change alone is not written after %s: %v", takes, saved)
		}
		w.Close()
	})
}

// A write that fails is said, and does not keep the next one from being written.
func TestWriterFails(t *testing.T) {
	var said bytes.Buffer
	d := &disk{writing: make(chan struct{}), err: errors.New("no space left on device")}
	close(d.writing)
	w := newWriter(d.save, d.gone, "the records", slog.New(slog.NewTextHandler(&said, nil)))
	w.Keep(at(1))
	w.Close()
	if text := said.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "no space left on device") {
		t.Errorf("said %q", text)
	}
}

// A copy that somebody deletes is written again, though there is nothing new, and so is one that
// could not be written.
func TestWriterPutsBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		f := NewFile(dir)
		w := NewWriter(f, slog.New(slog.DiscardHandler))
		expect := func(when string, want bool) {
			t.Helper()
			time.Sleep(lookEvery)
			synctest.Wait()
			if _, ok, err := f.Load(); ok != want || err != nil {
				t.Errorf("%s: a copy is there: %t, %v", when, ok, err)
			}
		}
		expect("at first", false)
		w.Keep(large(1))
		expect("kept", true)
		for _, gone := range []string{f.path, dir} {
			if err := os.RemoveAll(gone); err != nil {
				t.Fatal(err)
			}
			expect(gone+" is gone", true)
		}
		// Nothing can be written into what is no directory.
		if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery)
		w.Keep(large(2))
		synctest.Wait()
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		expect("the way is clear again", true)
		w.Close()
	})
}

// The copy is whole at the end, whatever was under way.
func TestWriterOnDisk(t *testing.T) {
	f := NewFile(t.TempDir())
	w := NewWriter(f, slog.New(slog.DiscardHandler))
	for r := range int64(50) {
		s := large(100)
		s.Revision = 1 + r
		w.Keep(s)
	}
	w.Close()
	want := large(100)
	want.Revision = 50
	got, ok, err := f.Load()
	if err != nil || !ok {
		t.Fatalf("there is a copy: %t, %v", ok, err)
	}
	if diff := cmp.Diff(want, got, comparers); diff != "" {
		t.Errorf("the copy (-want +got):\n%s", diff)
	}
}

// large are records of so many namespaces, and of one node for each 10 of them.
func large(namespaces int) topology.Snapshot {
	s := topology.Snapshot{Revision: 1, Config: topology.DefaultConfig(), Namespaces: map[string]topology.Namespace{}, Nodes: map[netip.Addr]topology.Node{}}
	for i := range namespaces {
		name, number := fmt.Sprintf("tenant-%05d", i), netid.ID(10+i)
		s.Namespaces[name] = topology.Namespace{NetName: name, NetID: raw(int64(number)), Effective: &number, UID: "b5f3a9b8-2d5c-4a2e-9a3e-5d2f6c7a8e90"}
	}
	for i := range namespaces / 10 {
		ip := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		s.Nodes[ip] = topology.Node{Host: "n", HostIP: ip, Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, byte(4 * i), 0}), 22)}
	}
	return s
}

// BenchmarkCopy is what the copy of 5,000 namespaces costs whoever holds the records: written by
// itself, and left to a Writer.
func BenchmarkCopy(b *testing.B) {
	s := large(5000)
	b.Run("written", func(b *testing.B) {
		f := NewFile(b.TempDir())
		for b.Loop() {
			if err := f.Save(s); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("left to a writer", func(b *testing.B) {
		w := NewWriter(NewFile(b.TempDir()), slog.New(slog.DiscardHandler))
		defer w.Close()
		for b.Loop() {
			w.Keep(s)
		}
	})
}
