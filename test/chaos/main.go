// Command chaos breaks a cluster at random and looks whether it stays what it should be.
//
// It runs the real programs in the lab of package netlab, draws from a seed what people and runtimes do (pods,
// tenants, policies, services, limits) and what breaks, and holds what the world does against a model that says who may talk
// to whom: throughout, packet by packet, and after each round as a whole. docs/chaos.md has more.
//
// main.go, run.go: a run and its rounds. plan.go: what is decided, from the seed alone. model.go: what should be.
// act.go, faults.go, cluster.go, serve.go: how it is done. compare.go, judge.go, usage.go: what is looked at.
// report.go: what is written about it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/chaos/rows"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// settings are a run's.
type settings struct {
	seed    uint64
	length  time.Duration
	nodes   int
	bin     string
	results string
	version string
	logs    string
	rows    string
}

func main() {
	var s settings
	flag.Uint64Var(&s.seed, "seed", 0, "what all decisions follow from; 0 draws one")
	flag.DurationVar(&s.length, "time", time.Minute, "how long rounds are begun")
	flag.IntVar(&s.nodes, "nodes", 3, "nodes of the cluster")
	flag.StringVar(&s.bin, "bin", os.Getenv("NETLAB_BIN"), "folder of the programs")
	flag.StringVar(&s.results, "results", "", "file of results to write into; empty prints them only")
	flag.StringVar(&s.version, "version", "unknown", "of the programs, for the results")
	flag.StringVar(&s.logs, "logs", filepath.Join(os.TempDir(), "k8s-ovs-chaos"), "folder for the logs of a run that failed")
	flag.StringVar(&s.rows, "rows", "", "do nothing but write the rows in this file, which tests of single faults have added, into the results")
	flag.Parse()
	// A signal ends the run, which takes away all that it has made.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	act := chaos
	if s.rows != "" {
		act = writeRows
	}
	if err := act(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		stop()
		os.Exit(1)
	}
}

// writeRows writes what tests of single faults have measured.
func writeRows(_ context.Context, s settings) error {
	data, err := os.ReadFile(s.rows)
	if err != nil {
		return err
	}
	table, err := rows.Table(string(data))
	if err != nil {
		return err
	}
	text := fmt.Sprintf("Version %s, %s. %s.\n\n%s", s.version, time.Now().UTC().Format(time.DateOnly), machine(), table)
	return writePart(s.results, faultsPart, text)
}

// chaos is one run.
func chaos(ctx context.Context, s settings) (err error) {
	if s.seed == 0 {
		s.seed = rand.Uint64N(1 << 32)
	}
	again := fmt.Sprintf("make chaos SEED=%d TIME=%s", s.seed, s.length)
	fmt.Println(again)
	c, err := up(ctx, netlab.Options{Name: fmt.Sprintf("chaos-%d", os.Getpid()), Nodes: s.nodes, BinDir: s.bin})
	if err != nil {
		return err
	}
	story := &story{}
	r := newRun(s.seed, c, story.tell)
	err = r.all(ctx, s.length)
	if interrupted := context.Cause(ctx); interrupted != nil {
		return errors.Join(interrupted, c.down())
	}
	if err != nil {
		err = fmt.Errorf("%w\nthe last of what was done:\n%s\nagain: %s", err, story.last(), again)
		dir := filepath.Join(s.logs, fmt.Sprint("seed-", s.seed))
		err = errors.Join(err, c.keepLogs(dir), os.WriteFile(filepath.Join(dir, "story.txt"), []byte(story.all()), 0o644))
		fmt.Println("logs are in", dir)
	}
	text := r.report(s.version, machine(), err)
	fmt.Println("\n" + text)
	if s.results != "" {
		err = errors.Join(err, writePart(s.results, randomPart, text))
	}
	return errors.Join(err, c.down())
}

// story is what a run says while it goes on.
type story struct {
	mu    sync.Mutex
	lines []string
}

func (s *story) tell(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Println(line)
	s.lines = append(s.lines, line)
}

func (s *story) text(from int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := ""
	for _, line := range s.lines[max(0, from):] {
		text += line + "\n"
	}
	return text
}

func (s *story) all() string { return s.text(0) }

// last is the end of it.
func (s *story) last() string {
	const most = 40
	s.mu.Lock()
	from := len(s.lines) - most
	s.mu.Unlock()
	return s.text(from)
}
