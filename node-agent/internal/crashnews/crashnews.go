// Package crashnews tells people when a daemon of Open vSwitch has ended: in metrics, and
// whoever it is given. It only reads what the daemons' supervisor wrote down, see
// [crashes]; where none runs, as Open vSwitch is a service of the node, there is nothing.
package crashnews

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/crashes"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

const (
	// lookEvery is how often the records are read: two small files in memory.
	lookEvery = time.Second
	// tellEvery is how often at most people are told of one daemon, but for the end of its
	// supervisor. One that ends all the time would else fill their Events.
	tellEvery = 10 * time.Second
	// lately is how old an end may be that a starting agent tells: the one before it may not
	// have come to it.
	lately = time.Minute
)

// News finds out which ends are news. It has no clock.
type News struct {
	// started is that records were read before.
	started bool
	// told is how many ends of each daemon people know of, at is when they were told.
	told map[string]int
	at   map[string]time.Time
}

// Next is what there is to tell of these records now.
func (n *News) Next(records []crashes.Record, now time.Time) (news []crashes.Record) {
	if n.told == nil {
		n.told, n.at = map[string]int{}, map[string]time.Time{}
	}
	for _, r := range records {
		count := r.Count()
		switch old := !n.started && (r.Last == nil || now.Sub(r.Last.Time) > lately); {
		case count < n.told[r.Daemon], old: // the folder was emptied; it was told by another agent
			n.told[r.Daemon] = count
			continue
		case count == n.told[r.Daemon], now.Sub(n.at[r.Daemon]) < tellEvery && !r.Last.GivenUp:
			continue
		}
		n.told[r.Daemon], n.at[r.Daemon] = count, now
		news = append(news, r)
	}
	n.started = true
	return news
}

// Watch reads the records below dir until ctx ends, and calls tell with those of daemons
// that ended.
func Watch(ctx context.Context, dir string, tell func(crashes.Record), log *slog.Logger) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var news News
	var trouble backoff.Trouble
	for {
		records, err := crashes.All(dir)
		if trouble.News(err) {
			log.Warn("records of how daemons of Open vSwitch ended are left out", "error", err)
		}
		for _, r := range news.Next(records, time.Now()) {
			tell(r)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// collector shows the records as metrics.
type collector struct {
	dir  string
	desc *prometheus.Desc
}

// NewCollector shows how often the daemons ended whose records are below dir. A series lasts
// as long as the machine runs, also when the agent or the daemon's container starts anew.
func NewCollector(dir string) prometheus.Collector {
	return collector{dir, prometheus.NewDesc("k8s_ovs_openvswitch_crashes_total",
		"Times that a daemon of Open vSwitch ended without being asked to since the machine started, by cause: a signal or an exit status.", []string{"daemon", "cause"}, nil)}
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	records, _ := crashes.All(c.dir) // Watch says what is wrong with others
	for _, r := range records {
		for cause, times := range r.Ends {
			ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(times), r.Daemon, cause)
		}
	}
}
