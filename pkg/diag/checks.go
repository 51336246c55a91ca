package diag

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// checkTimeout bounds one check: probes of Kubernetes give up after a second
// by default, so a check has to be quicker to be heard.
const checkTimeout = 800 * time.Millisecond

// Check is one named condition of health.
type Check struct {
	Name string
	// Probe is nil where all is well, else what is missing. It is given 800 ms.
	Probe func(context.Context) error
}

// checks serves the state of all of them: 200 and "ok", or 503 and one line,
// name and reason, for each that fails. With ?verbose all are listed.
type checks struct {
	all []*check
}

func newChecks(list []Check) *checks {
	c := &checks{}
	for _, one := range list {
		c.all = append(c.all, &check{Check: one})
	}
	return c
}

func (c *checks) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	results := make([]error, len(c.all))
	var wg sync.WaitGroup
	for i, one := range c.all {
		wg.Go(func() { results[i] = one.run(ctx) })
	}
	wg.Wait()

	var body strings.Builder
	verbose := r.URL.Query().Has("verbose")
	status := http.StatusOK
	for i, err := range results {
		switch {
		case err != nil:
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&body, "%s: %s\n", c.all[i].Name, oneLine(err))
		case verbose:
			fmt.Fprintf(&body, "%s: ok\n", c.all[i].Name)
		}
	}
	if body.Len() == 0 {
		body.WriteString("ok\n")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body.String()))
}

// check runs its probe at most once at a time: one that hangs costs one
// goroutine, however often it is asked.
type check struct {
	Check

	mu      sync.Mutex
	running *outcome
}

// outcome is one run of a probe; err may be read once done is closed.
type outcome struct {
	done  chan struct{}
	since time.Time
	err   error
}

func (c *check) run(ctx context.Context) error {
	c.mu.Lock()
	o := c.running
	if o == nil {
		o = &outcome{done: make(chan struct{}), since: time.Now()}
		c.running = o
		// The run may outlast this request and serve the next.
		go c.probe(context.WithoutCancel(ctx), o)
	}
	c.mu.Unlock()
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return fmt.Errorf("no answer for %s", time.Since(o.since).Round(100*time.Millisecond))
	}
}

func (c *check) probe(ctx context.Context, o *outcome) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	o.err = c.Probe(ctx)
	c.mu.Lock()
	c.running = nil
	c.mu.Unlock()
	close(o.done)
}

// oneLine keeps one reason on one line.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
