package ipam

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
)

// TestOpenAgainstReality: what becomes of a file that may not be believed.
func TestOpenAgainstReality(t *testing.T) {
	addrs := func(ls []Lease) (got []string) {
		for _, l := range ls {
			got = append(got, l.ContainerID+" "+l.first().String())
		}
		return got
	}
	// The file of each case has c0 .2, c1 .3, c2 .4, and .5 was used before.
	for _, tc := range []struct {
		name string
		boot string
		net  netip.Prefix
		// spoil changes the file.
		spoil func(t *testing.T, path string)
		live  []Lease
		want  []string
		// next is what two new pods get.
		next []string
	}{
		{name: "all as it was", live: []Lease{leased(0, "172.11.4.2"), leased(1, "172.11.4.3"), leased(2, "172.11.4.4")},
			want: []string{"c0 172.11.4.2", "c1 172.11.4.3", "c2 172.11.4.4"}, next: []string{"172.11.4.6", "172.11.4.5"}},
		{name: "OVSDB lost: the file holds", live: nil,
			want: []string{"c0 172.11.4.2", "c1 172.11.4.3", "c2 172.11.4.4"}, next: []string{"172.11.4.6", "172.11.4.5"}},
		{name: "live only", live: []Lease{leased(8, "172.11.4.5")},
			want: []string{"c0 172.11.4.2", "c1 172.11.4.3", "c2 172.11.4.4", "c8 172.11.4.5"}, next: []string{"172.11.4.6"}},
		{name: "address of another: live wins", live: []Lease{leased(8, "172.11.4.3")},
			want: []string{"c0 172.11.4.2", "c8 172.11.4.3", "c2 172.11.4.4"}, next: []string{"172.11.4.6", "172.11.4.5"}},
		{name: "another address: live wins", live: []Lease{leased(1, "172.11.4.6")},
			want: []string{"c0 172.11.4.2", "c2 172.11.4.4", "c1 172.11.4.6"}, next: []string{"172.11.4.5", "172.11.4.3"}},
		{name: "live twice: the first holds", live: []Lease{leased(8, "172.11.4.6"), leased(9, "172.11.4.6")},
			want: []string{"c0 172.11.4.2", "c1 172.11.4.3", "c2 172.11.4.4", "c8 172.11.4.6"}, next: []string{"172.11.4.5"}},
		{name: "live outside", live: []Lease{leased(8, "172.11.9.2"), leased(9, "172.11.4.1")},
			want: []string{"c0 172.11.4.2", "c1 172.11.4.3", "c2 172.11.4.4"}, next: []string{"172.11.4.6"}},
		{name: "file lost", spoil: remove, live: []Lease{leased(1, "172.11.4.3")},
			want: []string{"c1 172.11.4.3"}, next: []string{"172.11.4.4", "172.11.4.5", "172.11.4.6", "172.11.4.2"}},
		{name: "file lost, last address live", spoil: remove, live: []Lease{leased(1, "172.11.4.6")},
			want: []string{"c1 172.11.4.6"}, next: []string{"172.11.4.2"}},
		{name: "file cut", spoil: cut, live: []Lease{leased(1, "172.11.4.3")},
			want: []string{"c1 172.11.4.3"}, next: []string{"172.11.4.4"}},
		{name: "file empty", spoil: write(""), live: nil, want: nil, next: []string{"172.11.4.2"}},
		{name: "file is zeros", spoil: write("\x00\x00\x00"), live: nil, want: nil, next: []string{"172.11.4.2"}},
		{name: "file of a later release", spoil: write(`{"version":2,"bootID":"b","subnet":"172.11.4.0/29"}`), live: nil, want: nil, next: []string{"172.11.4.2"}},
		{name: "file of nonsense", spoil: write(`{"version":1,"bootID":"b","subnet":"172.11.4.0/29","start":"9.9.9.9","scanned":77,"freed":["1.1.1.1","172.11.4.3","172.11.4.3","172.11.4.4"],
			"leases":[{"address":"172.11.4.4","containerID":"c7","ifName":"eth0"},{"address":"172.11.4.4","containerID":"c8","ifName":"eth0"},{"address":"","containerID":"c9","ifName":"eth0"}]}`),
			live: nil, want: []string{"c7 172.11.4.4"}, next: []string{"172.11.4.3", "172.11.4.2", "172.11.4.5", "172.11.4.6"}},
		{name: "another boot: leases void, order kept", boot: "b2", live: nil, want: nil,
			next: []string{"172.11.4.6", "172.11.4.2", "172.11.4.3"}},
		{name: "another boot, something lives", boot: "b2", live: []Lease{leased(8, "172.11.4.6")},
			want: []string{"c8 172.11.4.6"}, next: []string{"172.11.4.2"}},
		{name: "another subnet", net: netip.MustParsePrefix("172.11.8.0/29"), live: []Lease{leased(0, "172.11.4.2")}, want: nil, next: []string{"172.11.8.2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			p := open(t, dir, small, "b")
			for i := range 4 {
				allocate(t, p, i)
			}
			p.Release(pod(3).Attachment())
			if tc.spoil != nil {
				tc.spoil(t, filepath.Join(dir, fileName))
			}
			if tc.boot == "" {
				tc.boot = "b"
			}
			if !tc.net.IsValid() {
				tc.net = small
			}
			p = open(t, dir, tc.net, tc.boot, tc.live...)
			if diff := cmp.Diff(tc.want, addrs(p.Leases())); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
			// What was made of it is on disk: it opens the same again.
			again := open(t, dir, tc.net, tc.boot)
			if diff := cmp.Diff(p.Leases(), again.Leases(), cmpOpts); diff != "" {
				t.Errorf("opened again (-first +second):\n%s", diff)
			}
			var next []string
			for i := range tc.next {
				next = append(next, allocate(t, again, 20+i))
			}
			if diff := cmp.Diff(tc.next, next); diff != "" {
				t.Errorf("new pods (-want +got):\n%s", diff)
			}
			// Nothing is lost: the rest can be allocated to the last address.
			for i := 0; again.Free() > 0; i++ {
				allocate(t, again, 50+i)
			}
			if len(again.Leases()) != again.Size() {
				t.Errorf("%d addresses of %d can be leased", len(again.Leases()), again.Size())
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}

func write(text string) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDepart: what is marked in the file of a pool that nobody has open is leaving for the next one, and all else is as it was.
func TestDepart(t *testing.T) {
	dir := t.TempDir()
	if err := Depart(dir, pod(0).Attachment()); err != nil {
		t.Errorf("no file: %v", err)
	}
	p := open(t, dir, small, "b")
	for i := range 3 {
		allocate(t, p, i)
	}
	p.Release(pod(2).Attachment())
	want := p.Leases()
	for range 2 {
		if err := Depart(dir, pod(1).Attachment(), pod(9).Attachment()); err != nil {
			t.Fatal(err)
		}
	}
	want[1].Leaving = true
	if diff := cmp.Diff(want, Stored(dir, []netip.Prefix{small}, "b"), cmpOpts); diff != "" {
		t.Errorf("stored (-want +got):\n%s", diff)
	}
	again := open(t, dir, small, "b")
	if diff := cmp.Diff(want, again.Leases(), cmpOpts); diff != "" {
		t.Errorf("opened again (-want +got):\n%s", diff)
	}
	if got := allocate(t, again, 5); got != "172.11.4.5" {
		t.Errorf("the next pod has %s: the order of addresses is lost", got)
	}
	for what, stored := range map[string][]Lease{
		"another boot": Stored(dir, []netip.Prefix{small}, "b2"), "another subnet": Stored(dir, []netip.Prefix{netip.MustParsePrefix("172.11.8.0/29")}, "b"), "no file": Stored(t.TempDir(), []netip.Prefix{small}, "b"),
	} {
		if len(stored) > 0 {
			t.Errorf("%s: %v", what, stored)
		}
	}
}

// TestSinceSurvives: a restart does not make leases younger, whatever OVSDB
// knows.
func TestSinceSurvives(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, small, "b")
	allocate(t, p, 0)
	live := leased(0, "172.11.4.2")
	live.Since = time.Time{}
	later := append(quiet(), withClock(func() time.Time { return epoch.Add(time.Hour) }))
	p, err := Open(dir, []netip.Prefix{small}, "b", []Lease{live, leased(1, "172.11.4.3")}, later...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Lease{leased(0, "172.11.4.2"), leased(1, "172.11.4.3")}, p.Leases(), cmpOpts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestStopBeforeWrite: until the file is written the old state holds, and the caller was told
// nothing.
func TestStopBeforeWrite(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, small, "b")
	allocate(t, p, 0)
	stopped := errors.New("stopped here")
	p.file.replace = func(string, []byte) error { return stopped }
	before := p.Leases()
	for range 2 {
		if _, err := p.Allocate(pod(1)); !errors.Is(err, stopped) || !strings.Contains(err.Error(), "172.11.4.3 cannot be leased to c1/eth0") {
			t.Fatalf("Allocate: %v", err)
		}
	}
	if diff := cmp.Diff(before, p.Leases(), cmpOpts); diff != "" || p.Free() != 4 {
		t.Errorf("%d free, leases (-before +after):\n%s", p.Free(), diff)
	}
	// A release holds in memory at once, and no other gets the address unwritten.
	p.Release(pod(0).Attachment())
	if len(p.Leases()) != 0 {
		t.Error("the lease is still there")
	}
	// The agent dies: its successor finds the last state that was written.
	p = open(t, dir, small, "b")
	if diff := cmp.Diff(before, p.Leases(), cmpOpts); diff != "" {
		t.Errorf("after the crash (-want +got):\n%s", diff)
	}
	if a := allocate(t, p, 1); a != "172.11.4.3" {
		t.Errorf("then %s, want 172.11.4.3: the failed ones used nothing up", a)
	}
}

// TestDiskFull fills a real file system.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("ipam-test", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatalf("mounting a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := open(t, dir, netip.MustParsePrefix("10.0.0.0/22"), "b")
	n := 0
	var err error
	for ; err == nil; n++ {
		if n > 500 {
			t.Fatal("16 KiB hold 500 leases twice?")
		}
		_, err = p.Allocate(pod(n))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Allocate: %v, want no space", err)
	}
	var storage *StorageError
	if err := p.Writable(); !errors.As(err, &storage) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v, want a StorageError", err)
	}
	held := n - 1
	if len(p.Leases()) != held || held < 10 {
		t.Errorf("%d leases after %d successes", len(p.Leases()), held)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("half a file is left: %v, %v", entries, err)
	}
	if diff := cmp.Diff(p.Leases(), open(t, dir, p.subnets[0], "b").Leases(), cmpOpts); diff != "" {
		t.Errorf("on disk (-memory +disk):\n%s", diff)
	}
	// DEL works on a full disk, and makes room.
	for i := range held {
		if !p.Release(pod(i).Attachment()) {
			t.Errorf("pod %d had no lease", i)
		}
	}
	if err := p.Writable(); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, fileName)); err != nil {
		t.Fatal(err)
	}
	if err := p.Writable(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, fileName)); err != nil {
		t.Errorf("somebody deleted the file, and it is not written again: %v", err)
	}
	if got := allocate(t, p, 999); got == "10.0.0.2" {
		t.Errorf("%s was used before", got)
	}
	if ls := open(t, dir, p.subnets[0], "b").Leases(); len(ls) != 1 {
		t.Errorf("%d leases on disk, want 1", len(ls))
	}
}

const killedEnv = "IPAM_TEST_KILLED_DIR"

// TestKilled kills an agent at any moment: whatever it had told anyone is on
// disk, and nothing else but the one step it was in.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killedEnv); dir != "" {
		untilKilled(dir)
		return
	}
	for round := range 5 {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), killedEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := map[string]string{} // pod to address, as the agent said
		lines := bufio.NewScanner(out)
		stop := 50 + rand.IntN(200)
		for n := 0; lines.Scan(); n++ {
			if n == stop {
				_ = cmd.Process.Kill() // what it had written to the pipe still comes
			}
			verb, id, addr := "", "", ""
			if c, _ := fmt.Sscan(lines.Text(), &verb, &id, &addr); c != 3 {
				continue // cut by the kill
			}
			if verb == "+" {
				said[id] = addr
			} else {
				delete(said, id)
			}
		}
		_ = cmd.Wait()

		p := open(t, dir, netip.MustParsePrefix("10.0.0.0/26"), "b")
		got := map[string]string{}
		for _, l := range p.Leases() {
			got[l.ContainerID] = l.first().String()
		}
		if d := differences(said, got); d > 1 || len(said) == 0 {
			t.Errorf("round %d: %d differences, more than the step in which it died:\n%s", round, d, cmp.Diff(said, got))
		}
	}
}

func differences(a, b map[string]string) (n int) {
	for k, v := range a {
		if b[k] != v {
			n++
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			n++
		}
	}
	return n
}

// untilKilled allocates and releases, and says what it has done.
func untilKilled(dir string) {
	p, err := Open(dir, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/26")}, "b", nil, quiet()...)
	if err != nil {
		panic(err)
	}
	w := io.Writer(os.Stdout)
	for i := 0; ; i++ {
		if l, err := p.Allocate(pod(i % 100)); err == nil {
			fmt.Fprintf(w, "+ c%d %s\n", i%100, l.first())
		}
		if old := pod((i + 70) % 100); p.Release(old.Attachment()) {
			fmt.Fprintf(w, "- %s x\n", old.ContainerID)
		}
	}
}

// before is a lease as the release before lists of addresses has it.
type before struct {
	Address      netip.Addr    `json:"address"`
	ContainerID  string        `json:"containerID"`
	IfName       string        `json:"ifName"`
	PodNamespace string        `json:"podNamespace,omitempty"`
	PodName      string        `json:"podName,omitempty"`
	Netns        string        `json:"netns,omitempty"`
	NetworkName  string        `json:"networkName,omitempty"`
	Limits       limits.Limits `json:"limits,omitzero"`
	Since        time.Time     `json:"since"`
	Leaving      bool          `json:"leaving,omitempty"`
}

// A file of the release before is read, and that release reads what is written: the address as
// ever, also of pods with two.
func TestReleaseBefore(t *testing.T) {
	dir := t.TempDir()
	old := `{"version":1,"bootID":"b","subnet":"172.11.4.0/29","start":"172.11.4.2","scanned":3,"freed":["172.11.4.3"],"leases":[
{"address":"172.11.4.2","containerID":"c1","ifName":"eth0","podNamespace":"ns","podName":"p1","netns":"/run/netns/p1","networkName":"net","since":"2024-05-01T12:00:00Z"},
{"address":"172.11.4.4","containerID":"c2","ifName":"eth0","podNamespace":"ns","podName":"p2","since":"2024-05-01T12:00:00Z","leaving":true}
]}
`
	write(old)(t, filepath.Join(dir, fileName))
	one, two := leased(1, "172.11.4.2"), leased(2, "172.11.4.4")
	one.Netns, one.NetworkName, two.Leaving = "/run/netns/p1", "net", true
	subnets := []netip.Prefix{small, netip.MustParsePrefix("fd00:1:2:3::/64")}
	p := openAll(t, dir, subnets, "b")
	if diff := cmp.Diff([]Lease{one, two}, p.Leases(), cmpOpts); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	three, err := p.Allocate(pod(3))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]netip.Addr{netip.MustParseAddr("172.11.4.5"), netip.MustParseAddr("fd00:1:2:3::ac0b:405")}, three.Addresses, cmpOpts); diff != "" {
		t.Errorf("addresses of a new one (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Lease{one, two, three}, openAll(t, dir, subnets, "b").Leases(), cmpOpts); diff != "" {
		t.Errorf("written and read (-want +got):\n%s", diff)
	}

	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		header
		Freed  []netip.Addr
		Leases []before
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want := func(l Lease) before {
		return before{l.first(), l.ContainerID, l.IfName, l.PodNamespace, l.PodName, l.Netns, l.NetworkName, l.Limits, l.Since, l.Leaving}
	}
	if diff := cmp.Diff([]before{want(one), want(two), want(three)}, got.Leases, cmpOpts); diff != "" {
		t.Errorf("read by the release before (-want +got):\n%s", diff)
	}
	if got.Subnet != small || got.Version != 1 || len(got.Freed) != 1 {
		t.Errorf("head of the file: %+v, freed %v", got.header, got.Freed)
	}
}

// Which addresses belong together follows from the subnets; a lease with others is not taken in.
func TestForeignTwin(t *testing.T) {
	p := openAll(t, t.TempDir(), []netip.Prefix{small, netip.MustParsePrefix("fd00:1:2:3::/64")}, "b")
	l := leased(1, "172.11.4.2")
	l.Addresses = append(l.Addresses, netip.MustParseAddr("fd00:1:2:3::2"))
	if err := p.admit(l); err == nil || !strings.Contains(err.Error(), "fd00:1:2:3::ac0b:402") {
		t.Errorf("admitted: %v", err)
	}
	if l.Addresses = []netip.Addr{l.first(), netip.MustParseAddr("fd00:1:2:3::ac0b:402")}; p.admit(l) != nil {
		t.Errorf("not admitted: %v", p.admit(l))
	}
}
