package ns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// create makes a namespace that goes with the test.
func create(t *testing.T, suffix string) string {
	t.Helper()
	name := fmt.Sprintf("nstest-%d-%s", os.Getpid(), suffix)
	if err := Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Delete(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func current(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCreateDelete(t *testing.T) {
	name := create(t, "a")
	if err := Create(name); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), name) {
		t.Errorf("second Create: %v, want ErrExists that names it", err)
	}
	if !Exists(name) {
		t.Errorf("%s does not exist after Create", name)
	}
	if got := List(name); len(got) != 1 {
		t.Errorf("List = %v, want the one", got)
	}
	for range 2 { // the second time there is nothing to delete
		if err := Delete(name); err != nil {
			t.Fatal(err)
		}
	}
	if Exists(name) {
		t.Errorf("%s exists after Delete", name)
	}
	if err := Create("../" + name); err == nil {
		t.Error("a name with a slash was taken")
	}
	if err := Do(name, func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Do in a namespace that is gone: %v", err)
	}
}

func TestDoComesHome(t *testing.T) {
	name := create(t, "home")
	home := current(t)
	failed := errors.New("failed inside")
	err := Do(name, func() error {
		if current(t) == home {
			t.Error("not in the other namespace")
		}
		links, err := net.Interfaces()
		if err != nil || len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
			t.Errorf("links %v (%v), want loopback alone, up", links, err)
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("Do = %v, want the function's error", err)
	}
	if got := current(t); got != home {
		t.Errorf("in %s after Do, want %s", got, home)
	}
}

func TestIPAndSockets(t *testing.T) {
	a, b := create(t, "1"), create(t, "2")
	ctx := context.Background()
	if err := IP(ctx, a, "link add eth0 type veth peer name eth0 netns "+b, "addr add 192.0.2.1/24 dev eth0", "link set eth0 up"); err != nil {
		t.Fatal(err)
	}
	if err := IP(ctx, b, "addr add 192.0.2.2/24 dev eth0", "link set eth0 up"); err != nil {
		t.Fatal(err)
	}
	if err := WaitRunning(ctx, a, "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := WaitRunning(ctx, a, "nosuch"); err == nil {
		t.Error("a link that is not there runs")
	}
	if err := IP(ctx, a, "link set nosuch up"); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("IP on a missing link: %v", err)
	}
	for _, name := range []string{a, b} {
		if err := Do(name, func() error { return TxChecksumOff("eth0") }); err != nil {
			t.Fatal(err)
		}
	}
	l, err := ListenTCP(Path(b), "192.0.2.2:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := DialTCP(Path(a), "192.0.2.2:7000", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); got != "192.0.2.2:7000" {
		t.Errorf("connected to %s", got)
	}
	_ = c.Close()
	if _, err := DialTCP(Path(a), "192.0.2.2:7001", 5*time.Second); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("dial to a closed port: %v, want refused", err)
	}
	// A connection that was made counts, though the deadline is over as well.
	for tries := 1; ; tries++ {
		c, err := DialTCP(Path(a), "192.0.2.2:7000", -time.Second)
		if err == nil {
			_ = c.Close()
			break
		}
		if tries == 100 {
			t.Fatalf("none of %d connections was made in no time: %v", tries, err)
		}
	}
	start := time.Now()
	if _, err := DialTCP(Path(a), "192.0.2.9:7001", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 2*time.Second {
		t.Errorf("dial to nobody: %v after %s, want the deadline", err, time.Since(start))
	}
}
