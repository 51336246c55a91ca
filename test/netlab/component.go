package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// logLines is how much of a log goes into an error message.
const logLines = 15

// run starts a command, records it, and waits at most timeout until ready says
// yes. A command that ends or does not get ready is an error with the end of its log.
func (l *Lab) run(ctx context.Context, c command, timeout time.Duration, ready func() (bool, error)) error {
	p, err := l.start(c)
	if err != nil {
		return err
	}
	err = l.update(func(s *state) error { s.Processes[c.name] = p; return nil })
	if err != nil {
		return errors.Join(err, p.Kill())
	}
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not ready in %s", timeout))
	defer cancel()
	var last error // why it is not ready
	err = waitFor(ctx, 5*time.Millisecond, func() (bool, error) {
		if !p.Alive() {
			return false, fmt.Errorf("it ended after %s", time.Since(began).Round(time.Millisecond))
		}
		ok, err := ready()
		last = err
		return ok, nil
	})
	if err == nil {
		return nil
	}
	if last != nil {
		err = fmt.Errorf("%w: %w", err, last)
	}
	return fmt.Errorf("start %s: %w; the end of %s:\n%s", c.name, err, c.log, tail(c.log, logLines))
}

// Component is one of the lab's programs by name: "controller", "etcd-1", "n1/agent",
// "n1/ovsdb-server", "n1/ovs-vswitchd".
type Component struct {
	lab  *Lab
	name string
}

// Process returns the component of that name; whether there is one shows when it is used.
func (l *Lab) Process(name string) Component { return Component{l, name} }

// Processes returns what the lab has started, by name, dead or alive.
func (l *Lab) Processes() ([]Process, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	var procs []Process
	for _, p := range s.Processes {
		procs = append(procs, p)
	}
	slices.SortFunc(procs, func(a, b Process) int { return strings.Compare(a.Name, b.Name) })
	return procs, nil
}

// Get returns the process of the component.
func (c Component) Get() (Process, error) {
	s, err := c.lab.read()
	if err != nil {
		return Process{}, err
	}
	p, ok := s.Processes[c.name]
	if !ok {
		var have []string
		for name := range s.Processes {
			have = append(have, name)
		}
		slices.Sort(have)
		return Process{}, fmt.Errorf("lab %s has not started %q; it has %s", c.lab.name, c.name, strings.Join(have, ", "))
	}
	return p, nil
}

// Signal sends a signal to the component.
func (c Component) Signal(sig syscall.Signal) error {
	p, err := c.Get()
	if err != nil {
		return err
	}
	return p.Signal(sig)
}

// Stop ends it with SIGTERM, after 10 s with SIGKILL.
func (c Component) Stop() error {
	p, err := c.Get()
	if err != nil {
		return err
	}
	return p.Stop(10 * time.Second)
}

// Kill ends it with SIGKILL.
func (c Component) Kill() error {
	p, err := c.Get()
	if err != nil {
		return err
	}
	return p.Kill()
}

// Suspend halts it (SIGSTOP) until Resume.
func (c Component) Suspend() error { return c.Signal(unix.SIGSTOP) }

// Resume undoes Suspend.
func (c Component) Resume() error { return c.Signal(unix.SIGCONT) }

// Alive reports whether it runs.
func (c Component) Alive() bool {
	p, err := c.Get()
	return err == nil && p.Alive()
}

// Log returns all it has printed.
func (c Component) Log() (string, error) {
	p, err := c.Get()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(p.Log)
	return string(data), err
}

// get asks a program's HTTP server on a unix socket for path; the error of an
// answer other than 200 has its body.
func get(ctx context.Context, socket, path string) (string, error) {
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://unix"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // read to its end
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("%s answers %s: %s", path, resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}
