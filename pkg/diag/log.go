// Package diag is what operators look at: the log, and an HTTP server with
// metrics, health and state.
//
// It owns no state of a program and decides nothing: programs give it a
// registry, checks and a callback.
package diag

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
)

// Formats of the log.
const (
	Text = "text"
	JSON = "json"
)

// NewLogger writes to w in format "text" or "json" what is of level "debug",
// "info", "warn" or "error", or above. Times are in UTC. The error names
// the value that is another.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	threshold, err := parseLevel(level)
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: threshold, ReplaceAttr: inUTC}
	switch strings.ToLower(format) {
	case Text:
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case JSON:
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log format %q is neither %q nor %q", format, Text, JSON)
}

func parseLevel(level string) (slog.Level, error) {
	switch strings.ToLower(level) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q is none of debug, info, warn, error", level)
}

// inUTC makes logs of machines in different zones comparable.
func inUTC(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		a.Value = slog.TimeValue(a.Value.Time().UTC())
	}
	return a
}

// Flags are those of every program that runs on.
type Flags struct {
	// LogFormat is "text" or "json".
	LogFormat string
	// LogLevel is "debug", "info", "warn" or "error".
	LogLevel string
	// MetricsAddress is where [Server] listens: host:port, :port,
	// unix:///path, or empty for nowhere.
	MetricsAddress string
	// Profiling serves /debug/pprof/ there, too.
	Profiling bool
}

// Register adds the flags. What stands in f is their default; where nothing
// does, the log is text of level info. An empty MetricsAddress stays empty.
func (f *Flags) Register(fs *pflag.FlagSet) {
	if f.LogFormat == "" {
		f.LogFormat = Text
	}
	if f.LogLevel == "" {
		f.LogLevel = "info"
	}
	fs.StringVar(&f.LogFormat, "log-format", f.LogFormat, "`format` of the log: text or json")
	fs.StringVar(&f.LogLevel, "log-level", f.LogLevel, "lowest `level` that is logged: debug, info, warn or error")
	fs.StringVar(&f.MetricsAddress, "metrics-address", f.MetricsAddress, "`address` of /metrics, /healthz and /readyz: host:port, :port or unix:///path; empty for none")
	fs.BoolVar(&f.Profiling, "profiling", f.Profiling, "serve /debug/pprof/ at --metrics-address")
}

// Logger is the log that the flags ask for.
func (f *Flags) Logger(w io.Writer) (*slog.Logger, error) {
	return NewLogger(w, f.LogFormat, f.LogLevel)
}
