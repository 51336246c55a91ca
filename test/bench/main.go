package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
)

// defaultOut is where the results are kept, seen from the module's folder.
const defaultOut = "test/bench"

// config is what the program was asked to do.
type config struct {
	short bool
	only  *regexp.Regexp
	// out is the folder for the files; empty for none.
	out string
	bin string
	// before and after are two results.json to be compared, with nothing measured.
	before, after string
}

func main() {
	// The first signal ends the run and cleans up, the second one ends that.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 2
	case cfg.before != "":
		err = compareRuns(cfg.before, cfg.after, stdout)
	default:
		err = measureAll(ctx, cfg, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (config, error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	short := fs.Bool("short", false, "few repetitions; writes files only with -out")
	only := fs.String("only", "", "measure only what matches this `regexp`; writes files only with -out")
	out := fs.String("out", "", "`folder` for results.json, RESULTS.md and the plot (default "+defaultOut+", without -short and -only)")
	bin := fs.String("bin", os.Getenv("NETLAB_BIN"), "`folder` with the programs and the reference plugins (default $NETLAB_BIN, or bin)")
	runs := fs.Bool("compare", false, "measure nothing; compare two results.json, those of before and of after: -compare before.json after.json")
	if err := fs.Parse(args); err != nil {
		return config{}, err
	}
	if *runs {
		if fs.NArg() != 2 {
			return config{}, fmt.Errorf("-compare needs two files, before.json and after.json; it was given %d", fs.NArg())
		}
		return config{before: fs.Arg(0), after: fs.Arg(1)}, nil
	}
	if fs.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	cfg := config{short: *short, out: *out, bin: *bin}
	if cfg.bin == "" {
		cfg.bin = "bin"
	}
	var err error
	if cfg.bin, err = filepath.Abs(cfg.bin); err != nil {
		return config{}, err
	}
	if *only != "" {
		if cfg.only, err = regexp.Compile(*only); err != nil {
			return config{}, fmt.Errorf("-only: %w", err)
		}
	}
	if cfg.out == "" && !cfg.short && cfg.only == nil {
		cfg.out = defaultOut
	}
	if cfg.out != "" {
		// Now, not after ten minutes.
		if st, err := os.Stat(cfg.out); err != nil || !st.IsDir() {
			return config{}, fmt.Errorf("-out %s is not a folder; run this from the module's folder, or name another one", cfg.out)
		}
	}
	for _, p := range []string{"k8s-ovs", "k8s-ovs-agent", "k8s-ovs-controller", "netns", "netlab", "bridge", "host-local", "bandwidth"} {
		if _, err := os.Stat(filepath.Join(cfg.bin, p)); err != nil {
			return config{}, fmt.Errorf("program %s is not in %s: run `make build reference`, or name another folder with -bin", p, cfg.bin)
		}
	}
	return cfg, nil
}
